"""The number of package files that a job enters."""

import inspect
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import Pipeline
from unlearnkit.cli.app import app

ROOT = Path(__file__).parents[1]
PIPELINE, RUN = 32, 95  # never raise them
FOLDERS = tuple(f"{ROOT / name}/" for name in ("unlearnkit", "plugins"))


@contextmanager
def entered():
    """Collect the files whose functions are called in this thread."""
    files = set()

    def profile(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(FOLDERS):
            files.add(Path(code.co_filename).relative_to(ROOT).as_posix())

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield files
    finally:
        sys.setprofile(before)


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    """Load plugins and fill caches."""
    edit_of_one_layer()


def edit_of_one_layer():
    torch.manual_seed(0)  # an edit that changes nothing says why, in one file more
    pipeline = Pipeline(unlearner=SelectiveSynapticDampening(alpha=1.5))
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 4, generator=generator), torch.arange(8) % 3) for _ in range(4)]
    with entered() as files:
        pipeline.run(nn.Linear(4, 3), forget=data[:1], reference=data)
    return files


def test_a_pipeline_on_one_linear_layer():
    files = edit_of_one_layer()
    assert "unlearnkit/pipeline.py" in files
    assert len(files) <= PIPELINE, sorted(files)


@pytest.mark.slow  # every call is profiled
def test_the_run_command_on_the_digits(trained_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [f"model.checkpoint={trained_checkpoint}", "model.options.width=4"]
    arguments = ["run", ROOT / "docs/experiments/digits.toml", "-q", *(part for s in settings for part in ("-s", s))]
    with entered() as files:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert "unlearnkit/cli/experiments.py" in files
    assert "unlearnkit/pipeline.py" in files
    assert len(files) <= RUN, sorted(files)
