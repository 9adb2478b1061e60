"""mypy agrees with what `subclasses.py` says about right and wrong subclasses."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

WRONG = """
from torch import Tensor
from unlearnkit import ElementwiseUnlearner


class Wrong(ElementwiseUnlearner):
    def rule(self, theta: Tensor, forget: Tensor) -> Tensor:
        return theta
"""


def mypy(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *map(str, paths)]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=600)


@pytest.mark.slow  # mypy reads all of torch when its cache is cold
def test_right_subclasses_pass_and_wrong_ones_fail_where_it_is_marked() -> None:
    run = mypy(HERE / "subclasses.py")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_a_rule_with_the_wrong_signature_fails(tmp_path: Path) -> None:
    (tmp_path / "wrong_plugin.py").write_text(WRONG)
    run = mypy(tmp_path / "wrong_plugin.py")
    assert run.returncode == 1
    assert 'Signature of "rule" incompatible with supertype' in run.stdout
    assert "[override]" in run.stdout
