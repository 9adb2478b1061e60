"""Settings on the command line."""

import pytest

from unlearnkit.experiments.config import apply_overrides
from unlearnkit.utils.errors import ConfigurationError

RAW = {"a": {"b": 1}, "method": [{"name": "ssd", "label": "one"}, {"name": "ssd"}, {"name": "prune"}]}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=2", {"b": 2}),
        ("a.b = 2.5", {"b": 2.5}),
        ("a.b=true", {"b": True}),
        ("a.b=[1, 2]", {"b": [1, 2]}),
        ('a.b="x"', {"b": "x"}),
        ("a.b=x/y.safetensors", {"b": "x/y.safetensors"}),
        ("a.c.d=1", {"b": 1, "c": {"d": 1}}),
        ("a.b=k=v", {"b": "k=v"}),
    ],
)
def test_values(override, expected):
    assert apply_overrides(RAW, [override])["a"] == expected
    assert RAW["a"] == {"b": 1}


def test_items_by_number_label_and_name():
    result = apply_overrides(RAW, ["method.one.x=1", "method.1.x=2", "method.prune.x=3"])
    assert [item["x"] for item in result["method"]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a.b", "expected a setting as KEY=VALUE"),
        ("=1", "expected a setting as KEY=VALUE"),
        ("a..b=1", "expected a setting as KEY=VALUE"),
        ("method.nobody.x=1", "no single item is called 'nobody'"),
        ("method.9.x=1", "no single item is called '9'"),
        ("a.b.c=1", "a.b has no keys"),
        ("a.b.c.d=1", "a.b has no keys"),
    ],
)
def test_errors(override, message):
    with pytest.raises(ConfigurationError, match=message):
        apply_overrides(RAW, [override])


def test_ambiguous_name_is_an_error():
    with pytest.raises(ConfigurationError, match="no single item is called 'ssd'"):
        apply_overrides({"method": [{"name": "ssd"}, {"name": "ssd"}]}, ["method.ssd.x=1"])
