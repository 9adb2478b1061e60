"""Bad input to the command: one clear message, exit code 2, no traceback, nothing written or changed."""

import shutil

import pytest
import torch
from typer.testing import CliRunner

from unlearnkit.cli.app import app
from unlearnkit.models.checkpoint import load_checkpoint, save_checkpoint
from unlearnkit.models.zoo import small_cnn

CASES = {
    "no such configuration": ([], "cannot read the configuration"),
    "no such checkpoint": (["model.checkpoint=none.safetensors"], "does not exist"),
    "a wrong key": (["importence.batch_size=1"], "did you mean 'importance'?"),
    "an empty forget set": (["forget={}"], "expected what to forget, saw nothing"),
    "everything forgotten": (["forget.classes=[0,1,2,3,4,5,6,7,8,9]"], "saw all 1347 forgotten"),
    "a class out of range": (["forget.classes=[11]"], "expected a class between 0 and 9"),
    "an index out of range": (["forget={indices=[1347]}"], "expected indices between 0 and 1346"),
    "an unknown method": (["method.ssd.name=sdd"], "did you mean 'ssd'?"),
    "an unknown option": (["method.ssd.options.alfa=1"], "did you mean 'alpha'?"),
    "a checkpoint of another model": (["model.options.width=8"], "does not fit SmallCNN"),
    "NaN in the model": ([], "saw NaN or infinity in features.0.weight of SmallCNN"),
    "an overflowing gradient": ([], "expected finite gradients, saw NaN or infinity in batch 0"),
    "a pickle": ([], "is a pickle"),
}


def call(*arguments):
    return CliRunner().invoke(app, ["run", *[str(a) for a in arguments], "-q"])


@pytest.fixture
def original(trained_checkpoint):
    model = small_cnn(width=4)
    load_checkpoint(model, trained_checkpoint)
    return model


def checkpoint_for(case, model, folder):
    """Write the checkpoint of a case."""
    path = folder / "bad.safetensors"
    first = next(model.parameters())
    if case == "NaN in the model":
        first.data.view(-1)[0] = torch.nan
    if case == "an overflowing gradient":
        for parameter in model.parameters():
            parameter.data.mul_(1e18)
    save_checkpoint(model, path)
    if case == "a pickle":
        path = folder / "bad.pt"
        torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_one_message_exit_code_2_and_nothing_written(case, digits_toml, tmp_path, original):
    settings, message = CASES[case]
    config = tmp_path / "none.toml" if case == "no such configuration" else digits_toml
    if case in {"NaN in the model", "an overflowing gradient", "a pickle"}:
        settings = [f"model.checkpoint={checkpoint_for(case, original, tmp_path)}"]
    before = sorted(p.name for p in tmp_path.iterdir())
    result = call(config, *(part for setting in settings for part in ("--set", setting)))
    assert result.exit_code == 2, result.output
    said = " ".join(result.output.split())
    assert said.count("error: ") == 1
    assert message in said
    assert "Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_checkpoint_on_disk_is_unchanged(digits_toml, tmp_path, trained_checkpoint):
    mine = tmp_path / "mine.safetensors"
    shutil.copy(trained_checkpoint, mine)
    call(digits_toml, "--set", f"model.checkpoint={mine}", "--set", "method.ssd.options.alpha=-1")
    assert mine.read_bytes() == trained_checkpoint.read_bytes()
