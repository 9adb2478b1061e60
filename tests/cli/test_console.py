"""Progress bars, warnings as lines, errors as messages."""

import io
import warnings
from contextlib import nullcontext

import pytest
from rich.console import Console

from unlearnkit.cli import console
from unlearnkit.cli.console import bars, clear_errors, one_process, out, together
from unlearnkit.distributed.collectives import Ranks
from unlearnkit.reporting import RunRecord, run_table
from unlearnkit.unlearning import Report
from unlearnkit.utils.errors import ConfigurationError, UnlearnKitWarning
from unlearnkit.utils.progress import silent


def test_bars_pass_every_item_through():
    with bars() as progress:
        assert list(progress([1, 2, 3], "counting", 3)) == [1, 2, 3]
        assert list(progress(iter([1]), "not counted", None)) == [1]


def test_an_error_is_printed_with_its_notes(capsys):
    error = ConfigurationError("expected [x], saw [y]")
    error.add_note("in batch 3")
    with pytest.raises(SystemExit) as caught, clear_errors():
        raise error
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: expected [x], saw [y]; in batch 3\n"


def test_error_and_warning_of_several_lines_are_shown_as_one(capsys):
    with clear_errors():
        warnings.warn("first\n  second", UnlearnKitWarning, stacklevel=1)
    with pytest.raises(SystemExit), clear_errors():
        raise ConfigurationError("a\nReceipt 9: forgotten")
    assert capsys.readouterr().err == "warning: first second\nerror: a Receipt 9: forgotten\n"


def test_a_warning_beside_progress_bars_is_one_piece(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, color_system=None, width=80))
    with bars() as progress, clear_errors():
        for _ in progress([1], "counting", 1):
            warnings.warn("look", UnlearnKitWarning, stacklevel=1)
    assert "warning: look\n" in screen.getvalue()


def test_names_that_look_like_markup_are_shown_in_full(capsys):
    out.print(run_table([RunRecord(label="a[b]", report=Report(method="m"))]))
    with bars() as progress:
        assert list(progress([1], "[/x]", 1)) == [1]
    with pytest.raises(SystemExit), clear_errors():
        raise ConfigurationError("no [/y] here")
    shown = capsys.readouterr()
    assert "a[b]" in shown.out
    assert "no [/y] here" in shown.err


def test_unexpected_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), clear_errors():
        _ = 1 / 0


def test_ctrl_c(capsys):
    with pytest.raises(SystemExit) as caught, clear_errors():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_warnings_print_one_line_and_showwarning_is_restored(capsys):
    shown = warnings.showwarning
    with clear_errors():
        warnings.simplefilter("always")
        warnings.warn("be [careful]", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: be [careful]\n"
    assert warnings.showwarning is shown


def test_single_process_prints_messages():
    with together("cpu") as (first, progress):
        assert first
        assert list(progress([1], "counting", 1)) == [1]


def test_ranks_other_than_0_print_nothing(monkeypatch, capsys):
    monkeypatch.setattr("unlearnkit.distributed.collectives.joined", lambda _: nullcontext(Ranks(rank=1, size=2)))
    with clear_errors(), together("cpu") as (first, progress):
        assert not first
        assert progress is silent
        warnings.warn("said by rank 0", UnlearnKitWarning, stacklevel=1)
    assert capsys.readouterr().err == ""


def test_single_process_command_refuses_torchrun(monkeypatch):
    one_process("train")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigurationError, match="`unlearnkit train` works in one process: expected no torchrun, saw 2"
    ):
        one_process("train")
