"""The notebooks under docs/ run, show what is committed, and are small."""

import re

import pytest

from tests.docs.notebooks import NOTEBOOKS, ROOT, executed, nbformat

LARGEST = 200_000  # bytes
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def shown(notebook):
    """What each cell shows: texts, and the kinds of pictures."""
    return [
        ("stream", out.name, out.text) if out.output_type == "stream" else (kind, "", "" if "image" in kind else text)
        for cell in notebook.cells
        if cell.cell_type == "code"
        for out in cell.outputs
        for kind, text in (sorted(out.data.items()) if "data" in out else [(out.output_type, "")])
    ]


def masked(text):
    """A text without its numbers, and without bars, which are as long as numbers are large."""
    return re.sub("[█▏▎▍▌▋▊▉]+", "", NUMBER.sub("#", text))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs_and_shows_what_is_committed(path, tmp_path):
    want, found = shown(nbformat.read(path, as_version=4)), shown(executed(path, tmp_path))
    assert any(kind == "image/png" for kind, _, _ in want)
    assert [masked(str(each)) for each in found] == [masked(str(each)) for each in want], (
        "run: python -m tests.docs.notebooks"
    )
    for (_, _, text), (_, _, committed) in zip(found, want, strict=True):
        numbers = [[float(number) for number in NUMBER.findall(each)] for each in (text, committed)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.25, abs=0.1), text  # another machine rounds otherwise


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_is_small_and_has_no_trace_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    assert not re.search(r"/(home|tmp|work|Users)/", path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)], "run: python -m tests.docs.notebooks"
