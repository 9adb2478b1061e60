"""`ssd` and `binary-mask` by a fraction of the weights, and what they say when nothing changed."""

import pytest
import torch
from torch import nn
from unlearnkit_methods.binary_mask import BinaryMask
from unlearnkit_methods.ssd import SelectiveSynapticDampening as SSD

from unlearnkit import ConfigurationError, Importance, UnlearningInputs
from unlearnkit.importance import Fingerprint

METHODS = (SSD, BinaryMask)
each_method = pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.name)


def threshold(cls):
    return "alpha" if cls is SSD else "lam"


def drawn(size=1000, *, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    values = [torch.rand(1, size, generator=generator) for _ in range(2)]
    forget = Importance(totals={"weight": scale * values[0]}, count=1, role="forget")
    model = nn.Linear(size, 1, bias=False)
    nn.init.ones_(model.weight)
    return model, UnlearningInputs(forget=forget, reference=Importance(totals={"weight": values[1]}, count=1))


def oracle(inputs, share):
    """The places with the largest ratios, by sorting in Python."""
    f, r = (i.totals["weight"].flatten().tolist() for i in (inputs.forget, inputs.reference))
    order = sorted(range(len(f)), key=lambda i: f[i] / r[i], reverse=True)
    return sorted(order[: int(share * len(f))])


@each_method
@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 1.0])
def test_the_weights_with_the_largest_ratios_are_edited(cls, share):
    model, inputs = drawn()
    report = cls(fraction=share, **({"lam": 0.0} if cls is SSD else {})).unlearn(model, inputs)
    assert (model.weight[0] == 0).nonzero().flatten().tolist() == oracle(inputs, share)
    assert report.fraction == pytest.approx(share)
    assert set(report.derived) == {threshold(cls)}


@each_method
@pytest.mark.parametrize(("by", "different"), [("fraction", 1), ("threshold", 3)])
def test_the_fraction_does_not_depend_on_the_scale_and_the_fixed_option_does(cls, by, different):
    options = {"fraction": 0.1} if by == "fraction" else {threshold(cls): 2.0}
    cases = [drawn(scale=scale) for scale in (0.25, 1.0, 8.0)]
    method = cls(**{**({"lam": 0.0} if cls is SSD else {}), **options})
    assert len({method.unlearn(*case).changed for case in cases}) == different


@each_method
def test_a_fraction_takes_back_what_it_breaks(cls):
    plain, by_fraction = cls().promises(), cls(fraction=0.1).promises()
    assert threshold(cls) in plain.monotone
    assert threshold(cls) not in by_fraction.monotone
    assert plain.sharded
    assert not by_fraction.sharded


@each_method
def test_an_edit_that_changes_nothing_says_what_would_change_something(cls):
    model, inputs = drawn(size=200)
    f, r = (i.totals["weight"].double() for i in (inputs.forget, inputs.reference))
    first, second = (f / r).flatten().sort(descending=True).values[:2].tolist()
    down = 1 - 1e-6
    strong = cls(**{threshold(cls): 2 * first})
    report = strong.unlearn(model, inputs)
    symbol = "α" if cls is SSD else "λ"
    largest, other = f"{first * down:.5g}", f"{symbol} = {second * down:.6g}"
    said = f"The largest F_f/F_r seen is {largest}; {other} would select 1 % of the weights."
    assert report.remarks == (said,)
    assert said in report.sentence()
    weaker = cls(**{threshold(cls): 0.99999 * second}, **({"lam": 0.0} if cls is SSD else {}))
    assert weaker.unlearn(model, inputs).changed == 2


def test_a_selection_that_the_clamp_undoes_is_reported_too():
    model, inputs = drawn()
    report = SSD(alpha=1.0, lam=1e9).unlearn(model, inputs)
    assert report.changed == 0
    assert "would select 1 % of the weights" in report.sentence()


@each_method
def test_no_remark_when_something_changed(cls):
    model, inputs = drawn()
    assert cls(fraction=0.5, **({"lam": 0.0} if cls is SSD else {})).unlearn(model, inputs).remarks == ()


@each_method
@pytest.mark.parametrize("wrong", [0.0, -0.1, 1.5])
def test_other_fractions_are_refused(cls, wrong):
    with pytest.raises(ConfigurationError, match="fraction: expected a number > 0"):
        cls(fraction=wrong)


def test_with_a_fraction_the_bound_on_alpha_is_not_mentioned():
    """α ≥ 1/p can select nothing; a fraction chooses a smaller one."""
    unit, ones = Fingerprint(unit="sample"), {"w": torch.ones(2)}
    forget, full = (
        Importance(totals=ones, count=n, samples=n, role=role, fingerprint=unit)
        for n, role in ((1, "forget"), (5, "full"))
    )
    inputs = UnlearningInputs(forget=forget, reference=full)
    assert "1/p = 5" in SSD(alpha=10.0).remarks(inputs)[0]
    assert SSD(fraction=0.1).remarks(inputs) == ()
