"""Options: types, bounds, descriptions and error messages."""

import math
from typing import ClassVar

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit import ConfigurationError, option
from unlearnkit.utils.options import option_values, options_of


@attrs.frozen(kw_only=True)
class Method:
    name: ClassVar[str] = "method"
    alpha: float = option(10.0, doc="selection weighting", symbol="α", above=0, source="equation 4")
    share: float = option(0.5, doc="a share", at_least=0, at_most=1)
    steps: int = option(3, doc="steps", at_least=1, meaning=False)
    exact: bool = option(default=True, doc="exact")
    kind: str = option("mean", doc="kind", choices=("mean", "sum"))
    limit: float | None = option(None, doc="limit", above=0)


@attrs.frozen(kw_only=True)
class Needy:
    tau: float = option(doc="threshold")


def test_float_options_take_whole_numbers_and_infinity():
    method = Method(alpha=3, limit=2)
    assert (method.alpha, type(method.alpha)) == (3.0, float)
    assert (method.limit, type(method.limit)) == (2.0, float)
    assert Method(alpha=math.inf).alpha == math.inf
    assert Method().limit is None
    assert Needy(tau=1).tau == 1.0


@settings(derandomize=True, deadline=None)
@given(st.floats(allow_nan=True) | st.integers(-(10**320), 10**320))
def test_exactly_the_numbers_inside_the_bounds_are_taken(value):
    inside = 0 <= value <= 1  # false for NaN
    if inside:
        assert Method(share=value).share == value
    else:
        with pytest.raises(ConfigurationError, match=r"Method\.share: expected a number ≥ 0 ≤ 1, saw"):
            Method(share=value)


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"alpha": 0}, r"Method\.alpha \(α\): expected a number > 0, saw 0.0"),
        ({"alpha": math.nan}, r"saw nan"),
        ({"alpha": True}, r"expected a number > 0, saw True"),
        ({"alpha": "10"}, r"saw '10'"),
        ({"alpha": None}, r"saw None"),
        ({"alpha": 10**400}, r"expected a number > 0, saw 1000"),
        ({"steps": 0}, r"Method\.steps: expected a whole number ≥ 1, saw 0"),
        ({"steps": 2.0}, r"expected a whole number ≥ 1, saw 2\.0"),
        ({"steps": True}, r"saw True"),
        ({"exact": 1}, r"expected true or false, saw 1"),
        ({"kind": "median"}, r"expected one of 'mean', 'sum', saw 'median'"),
        ({"kind": ["mean"]}, r"saw \['mean'\]"),
        ({"limit": -1}, r"expected a number > 0, saw -1.0"),
    ],
)
def test_a_wrong_value_is_refused_naming_field_bound_and_value(given_, said):
    with pytest.raises(ConfigurationError, match=said):
        Method(**given_)


def test_evolve_checks_again():
    with pytest.raises(ConfigurationError, match=r"Method\.alpha"):
        attrs.evolve(Method(), alpha=-1.0)


def test_an_int_of_a_field_that_is_annotated_float_makes_a_float_option():
    @attrs.frozen(kw_only=True)
    class Whole:
        lam: float = option(1, doc="weight", search=(0.1, 10))

    assert (Whole().lam, type(Whole().lam), Whole(lam=0.5).lam) == (1.0, float, 0.5)
    assert (options_of(Whole)[0].kind, type(options_of(Whole)[0].default)) == (float, float)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ((4, 1), r"two finite numbers with low < high, saw \(4, 1\)"),
        (5, "expected search="),
        (("a", "b"), "expected search="),
        ((1, 2, 3), "expected search="),
        ((1.0, math.inf), "finite"),
        ((-1, 4), r"expected a range to search > 0, saw search=\(-1, 4\)"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused(search, said):
    with pytest.raises(ConfigurationError, match=said):
        option(1.0, doc="weight", above=0, search=search)


def test_options_of_a_class_and_of_an_object_are_described():
    found = {o.name: o for o in options_of(Method)}
    assert list(found) == ["alpha", "share", "steps", "exact", "kind", "limit"]
    alpha = found["alpha"]
    assert (alpha.default, alpha.symbol, alpha.doc, alpha.source) == (10.0, "α", "selection weighting", "equation 4")
    assert (alpha.required, alpha.meaning, found["steps"].meaning) == (False, True, False)
    assert options_of(Method(alpha=2)) == options_of(Method)
    assert options_of(Needy)[0].required
    assert options_of(object) == options_of(3) == ()


def test_values_are_the_objects_own():
    assert option_values(Method(alpha=2))["alpha"] == 2.0
    assert "steps" in option_values(Method())
    assert "steps" not in option_values(Method(), meaning_only=True)
    assert option_values(object()) == {}
