"""Values written as Python source round-trip, bit by bit."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import DiagonalFisher
from unlearnkit.importance import Role
from unlearnkit.testing import LawCase, RuleInputs, same, tensors
from unlearnkit.testing.law import source
from unlearnkit.testing.strategies import DTYPES, shapes


def again(value):
    imports = set()
    text = source(value, imports)
    names = {}
    exec("\n".join(imports), names)
    return eval(text, names)


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from(DTYPES), shapes())
def test_tensors_round_trip_bit_by_bit(data, dtype, shape):
    tensor = data.draw(tensors(dtype=dtype, shape=shape, finite=False))
    assert same(again(tensor), tensor)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -0.0,
        math.inf,
        -math.inf,
        "it's",
        b"x",
        (1,),
        (),
        [1, (2.5, None)],
        {"a": 1.0},
        frozenset({"b", "a"}),
        torch.float16,
        Role.FORGET,
        LawCase(layers=("conv",), dtype=torch.float64, forget=(math.inf,)),
        SelectiveSynapticDampening(alpha=math.inf),
        DiagonalFisher(chunk=2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_round_trip(value):
    assert again(value) == value


def test_nan_round_trip():
    assert math.isnan(again(math.nan))


def test_public_names_are_imported_from_where_they_are_public():
    imports = set()
    source((RuleInputs(theta=1, forget=2, reference=3), DiagonalFisher()), imports)
    assert imports == {"from unlearnkit.testing import RuleInputs", "from unlearnkit import DiagonalFisher"}


def test_class_that_cannot_be_imported_is_only_named():
    class Local:
        pass

    imports = set()
    assert source(Local(), imports) == "Local()"
    assert imports == set()
