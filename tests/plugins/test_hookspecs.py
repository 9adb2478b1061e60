"""Every hook has a test; test_docs.py compares the signatures with docs/reference/hooks.md."""

import re
from pathlib import Path

import pytest

from unlearnkit.plugins import hookspecs

TESTS = Path(__file__).parents[1]
HOOKS = sorted(name for name in dir(hookspecs) if hasattr(getattr(hookspecs, name), f"{hookspecs.PROJECT}_spec"))


def test_the_hooks_are_those_of_the_design():
    assert HOOKS == [
        "unlearnkit_after_estimate",
        "unlearnkit_after_run",
        "unlearnkit_after_write",
        "unlearnkit_before_run",
        "unlearnkit_register_estimators",
        "unlearnkit_register_kernels",
        "unlearnkit_register_metrics",
        "unlearnkit_register_unlearners",
    ]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_test_implements_the_hook(hook):
    texts = {path: path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py") if path != Path(__file__)}
    implemented = re.compile(rf'@hookimpl\n\s*def {hook}\(|specname="{hook}"')
    assert [path for path, text in texts.items() if implemented.search(text)]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_docstring_and_typed_arguments(hook):
    function = getattr(hookspecs, hook)
    assert function.__doc__
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    assert set(function.__annotations__) == {*names, "return"}
