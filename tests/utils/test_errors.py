"""Errors: one hierarchy, standard parents, and messages that list every problem."""

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unlearnkit
from unlearnkit.utils import errors
from unlearnkit.utils.errors import ConfigurationError, MismatchError, UnlearnKitError, nearest, raise_all

ERRORS = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)]


def test_several_problems_make_one_line():
    with pytest.raises(MismatchError) as caught:
        raise_all(["a: expected 3, saw 4", "b: missing"], where="the model")
    assert str(caught.value) == "the model: 2 problems: (1) a: expected 3, saw 4; (2) b: missing"


def test_message_of_very_many_problems_has_an_end():
    with pytest.raises(MismatchError, match=r"the model: 500 problems: \(1\) p0; .*\(20\) p19; and 480 more$"):
        raise_all([f"p{number}" for number in range(500)], where="the model")


def test_one_problem_makes_one_line_and_none_makes_no_error():
    with pytest.raises(MismatchError) as caught:
        raise_all(["a: expected 3, saw 4"], where="the model")
    assert str(caught.value) == "the model: a: expected 3, saw 4"
    assert raise_all([], where="the model") is None


@settings(derandomize=True, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5))
def test_message_lists_every_problem_and_accepts_a_generator(problems):
    with pytest.raises(ConfigurationError) as caught:
        raise_all((p for p in problems), where="here", error=ConfigurationError)
    assert str(caught.value).startswith("here: ")
    assert all(problem in str(caught.value) for problem in problems)


@pytest.mark.parametrize("cls", ERRORS, ids=lambda c: c.__name__)
def test_every_class_is_public_documented_and_of_the_family(cls):
    assert issubclass(cls, UnlearnKitError | errors.UnlearnKitWarning)
    assert cls.__doc__
    assert getattr(unlearnkit, cls.__name__) is cls


@pytest.mark.parametrize(
    ("cls", "parent"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.MismatchError, ValueError),
        (errors.NonFiniteError, ValueError),
        (errors.UnknownMethodError, LookupError),
        (errors.PluginWarning, UserWarning),
    ],
)
def test_errors_subclass_builtin_exceptions(cls, parent):
    assert issubclass(cls, parent)


def test_nearest_suggests_the_closest_name():
    assert nearest("aplha", ["lam", "alpha"]) == "; did you mean 'alpha'? Known: 'alpha', 'lam'"
    assert nearest("zzz", ["alpha"]) == "; Known: 'alpha'"
    assert nearest("alpha", []) == "; there are none"


@settings(derandomize=True, deadline=None)
@given(st.lists(st.text("abcXYZ", min_size=1, max_size=6), min_size=1, unique=True))
def test_nearest_finds_a_known_name_itself_and_lists_all(names):
    said = nearest(names[0], iter(names))
    assert f"did you mean {names[0]!r}?" in said
    assert all(repr(name) in said for name in names)
