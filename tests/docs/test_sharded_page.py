"""The program of the page on sharded models, run in two processes as by torchrun."""

import re
from pathlib import Path

import forked_process as forked
from torchrun import run_as_rank

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "sharded-models.md"
SAID = r"""ssd changed (\d+) of 16522 weights \(.*?\)\.
accuracy on threes (.*?) -> (.*?), on the others (.*?) -> (.*?)
"""


def numbers(said):
    """Changed weights, and the four accuracies."""
    found = re.fullmatch(SAID, said)
    assert found, said
    return [float(number) for number in found.groups()]


def test_program_of_the_page_prints_what_the_page_shows(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    program, shown = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "text"))
    (tmp_path / "forget_sharded.py").write_text(program)
    forked.run_all(run_as_rank, [(rank, 2, str(tmp_path), "forget_sharded.py") for rank in range(2)])
    changed, *accuracies = numbers((tmp_path / "0.txt").read_text())
    expected, *others = numbers(shown)
    assert abs(changed - expected) < 0.3 * expected  # training in float32 rounds differently elsewhere
    assert all(abs(seen - said) < 0.05 for seen, said in zip(accuracies, others, strict=True))
    assert not (tmp_path / "1.txt").read_text()  # only rank 0 prints
    assert (tmp_path / "edited").is_dir()
