"""UNLEARNKIT_TRACE_HOOKS=1 prints every hook call: plugin, arguments, seconds."""
# ruff: noqa: ARG002 - the signatures are the framework's

import re
import sys
import warnings

import pytest

from unlearnkit import DiagonalFisher, Importance, PluginManager, Report, Run, hookimpl
from unlearnkit.plugins.manager import TRACE

RUN = Run(method="m", options={}, estimator="e", model="M")
LINE = r"\[trace\] {hook} of plugin '{plugin}' \({origin}\): \d+\.\d{{4}} s{outcome}"


class Watcher:
    @hookimpl
    def unlearnkit_before_run(self, run):
        """Watch."""

    @hookimpl
    def unlearnkit_after_run(self, run, report):
        raise ZeroDivisionError

    @hookimpl
    def unlearnkit_after_estimate(self, run, role, importance):
        """Watch."""

    @hookimpl
    def unlearnkit_register_estimators(self):
        return [DiagonalFisher]


def exercise():
    import torch

    manager = PluginManager(entry_points=False)
    manager.register(Watcher(), name="watcher")
    manager.provided("estimator")
    manager.before_run(RUN)
    manager.after_estimate(RUN, "forget", Importance(totals={"w": torch.ones(1)}, count=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manager.after_run(RUN, Report(method="m"))


def line(hook, outcome="", plugin="watcher", origin=".*"):
    return re.compile(LINE.format(hook=hook, plugin=plugin, origin=origin, outcome=outcome))


def test_every_call_is_one_line_on_the_error_stream(monkeypatch, capsys):
    monkeypatch.setenv(TRACE, "1")
    exercise()
    shown = capsys.readouterr()
    assert shown.out == ""
    wanted = [
        line("unlearnkit_register_estimators"),
        line("unlearnkit_before_run"),
        line("unlearnkit_after_estimate"),
        line("unlearnkit_after_run", ", raised ZeroDivisionError"),
    ]
    lines = shown.err.splitlines()
    assert len(lines) == len(wanted)
    assert all(pattern.fullmatch(text) for pattern, text in zip(wanted, lines, strict=True))


@pytest.mark.parametrize("value", [None, "", "0"])
def test_no_output_without_the_variable(monkeypatch, capsys, value):
    if value is None:
        monkeypatch.delenv(TRACE, raising=False)
    else:
        monkeypatch.setenv(TRACE, value)
    exercise()
    assert capsys.readouterr().err == ""


def test_the_installed_plugins_are_shown_with_their_distribution(monkeypatch, capsys):
    monkeypatch.setenv(TRACE, "1")
    PluginManager().unlearner("ssd")
    shown = capsys.readouterr().err.splitlines()
    pattern = line("unlearnkit_register_unlearners", plugin="ssd", origin=r"unlearnkit \S+")
    assert len([text for text in shown if pattern.fullmatch(text)]) == 1


def test_the_calls_are_timed(monkeypatch, capsys):
    import time

    class Slow:
        @hookimpl
        def unlearnkit_before_run(self, run):
            time.sleep(0.02)

    monkeypatch.setenv(TRACE, "1")
    manager = PluginManager(entry_points=False)
    manager.register(Slow(), name="slow")
    manager.before_run(RUN)
    seconds = float(re.search(r": (\S+) s", capsys.readouterr().err)[1])
    assert 0.02 <= seconds < 5
    assert "slow" not in sys.modules
