"""Progress bars: on a terminal and in a notebook, and nowhere else."""

import contextlib
import io
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from unlearnkit import unlearn
from unlearnkit.models import Training, train
from unlearnkit.utils import progress
from unlearnkit.utils.progress import bar, progress_of, silent


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 0)
    for name in (progress.SWITCH, "RANK"):
        monkeypatch.delenv(name, raising=False)


def said_on(stream, **arguments):
    """What an edit and two epochs of training write to an error stream."""
    with contextlib.redirect_stderr(stream):  # not in a fixture: pytest sets the stream anew before each test
        unlearn(nn.Linear(2, 2), "ssd", forget=DATA[:1], retain=DATA, fraction=0.1, **arguments)
        train(nn.Linear(2, 2), DATA, training=Training(epochs=2), **arguments)
    return stream.getvalue()


DATA = [(torch.eye(2), torch.tensor([0, 1]))] * 3


def test_a_terminal_shows_a_bar_for_each_stage():
    said = said_on(Terminal())
    for what in ("importance: forget", "importance: retain", "0/3", "training, 2 epochs"):
        assert what in said


@pytest.mark.parametrize("arguments", [{"progress": False}, {"progress": silent}])
def test_an_argument_switches_it_off(arguments):
    assert said_on(Terminal(), **arguments) == ""


@pytest.mark.parametrize(("name", "value"), [(progress.SWITCH, "0"), ("RANK", "1")])
def test_the_environment_switches_it_off(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert said_on(Terminal()) == ""


def test_a_stream_that_is_no_terminal_stays_empty():
    assert said_on(io.StringIO()) == ""
    with contextlib.redirect_stderr(None):  # of a program without a console
        assert bar(DATA, "", None) is DATA


def test_a_notebook_shows_bars_though_it_has_no_terminal(monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda _: None)  # without widgets: as text
    assert "importance: forget" in said_on(io.StringIO())


def test_a_function_of_ones_own_is_taken_as_it_is():
    seen = []
    unlearn(
        nn.Linear(2, 2), "ssd", forget=DATA, retain=DATA, progress=lambda *given: seen.append(given[1:]) or given[0]
    )
    assert seen == [("importance: forget", 3), ("importance: retain", 3)]
    assert progress_of(True) is bar
