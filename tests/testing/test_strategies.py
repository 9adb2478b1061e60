"""The strategies draw the documented values, in every dtype."""

import math

import attrs
import pytest
import torch
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from torch import nn
from unlearnkit_methods.binary_mask import BinaryMask
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import ConfigurationError, Unlearner, option
from unlearnkit.models.parameters import bits
from unlearnkit.testing import (
    LawCase,
    SmallNet,
    Snapshot,
    from_unlearner,
    importances,
    law_cases,
    models,
    rule_inputs,
    same,
    tensors,
)
from unlearnkit.testing.strategies import DTYPES, shapes, values_of
from unlearnkit.utils.options import options_of

few = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@few
@given(st.data(), st.sampled_from(DTYPES), shapes())
def test_tensors_are_finite_and_of_the_dtype_and_shape_asked_for(data, dtype, shape):
    tensor = data.draw(tensors(dtype=dtype, shape=shape))
    assert (tensor.dtype, tensor.shape) == (dtype, torch.Size(shape))
    assert tensor.numel() <= 8
    assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_reach_the_largest_number_minus_zero_and_odd_nans(dtype):
    def reaches(what, **options):
        return find(tensors(dtype=dtype, shape=(1,), **options), what, settings=settings(few, max_examples=500))

    assert reaches(lambda t: t.item() > torch.finfo(dtype).max / 2)
    assert reaches(lambda t: t.item() == 0 and math.copysign(1, t.item()) < 0) is not None
    assert reaches(lambda t: t.isnan().item() and not same(t, torch.full_like(t, math.nan)), finite=False) is not None


@few
@given(rule_inputs())
def test_rule_inputs_fit_together(case):
    assert case.theta.shape == case.forget.shape == case.reference.shape
    assert case.forget.dtype == case.reference.dtype
    assert case.forget.dtype in {torch.float32, torch.float64}
    assert (case.forget >= 0).all()
    assert (case.reference >= 0).all()
    assert torch.isfinite(torch.stack([case.forget, case.reference])).all()


@few
@given(importances(like={"w": (2, 3)}, dtype=torch.float64))
def test_importances_have_the_names_and_shapes_asked_for(importance):
    assert importance.totals["w"].shape == (2, 3)
    assert importance.totals["w"].dtype == torch.float64
    importance.check_values(who="the strategy")


@few
@given(importances())
def test_importances_need_no_names(importance):
    assert 1 <= len(importance.totals) <= 3


@few
@given(from_unlearner(SelectiveSynapticDampening))
def test_options_are_drawn_within_their_bounds(method):
    assert method.alpha > 0
    assert method.lam >= 0


def test_options_reach_infinity_the_bound_and_the_default():
    few_more = settings(few, max_examples=500)
    find(from_unlearner(SelectiveSynapticDampening), lambda m: m.alpha == math.inf, settings=few_more)
    find(from_unlearner(SelectiveSynapticDampening), lambda m: m.lam == 0, settings=few_more)
    find(from_unlearner(BinaryMask), lambda m: m.lam == 1, settings=few_more)


@attrs.frozen(kw_only=True)
class Many(Unlearner):
    name = "many"
    needs = frozenset()
    steps: int = option(3, doc="whole", at_least=1, at_most=5)
    small: float = option(doc="required", above=-1, at_most=0)
    flag: bool = option(False, doc="yes or no")
    how: str = option("a", doc="word", choices=("a", "b"))
    maybe: float | None = option(None, doc="may be left out")
    plain: int = 7

    def __attrs_post_init__(self):
        if self.how == "b" and self.flag:
            raise ConfigurationError("b has no flag")

    def apply(self, model, inputs):
        del model, inputs


@few
@given(from_unlearner(Many, plain=st.integers(8, 9)))
def test_every_kind_of_option_is_drawn(method):
    assert 1 <= method.steps <= 5
    assert -1 < method.small <= 0
    assert not (method.how == "b" and method.flag)
    assert method.plain in {8, 9}


def test_option_without_known_values_is_refused_with_advice():
    @attrs.frozen(kw_only=True)
    class Plain:
        x: object = attrs.field()

    (only,) = options_of(Plain)
    with pytest.raises(ConfigurationError, match="pass a strategy for it by name"):
        values_of(only)


@few
@given(models())
def test_models_are_small_and_run(model):
    assert sum(p.numel() for p in model.parameters()) <= 150
    with torch.no_grad():
        logits = model.eval()(torch.rand(2, 3, dtype=model.head.bias.dtype) * 4)
    assert logits.shape == (2, 4)


def test_models_cover_common_layers():
    seen = []

    @settings(few, max_examples=60)
    @given(models())
    def collect(model):
        seen.append(model)

    collect()
    layers = {type(layer) for model in seen for layer in model.layers}
    assert {nn.Linear, nn.Conv1d, nn.LayerNorm, nn.BatchNorm1d, nn.MultiheadAttention, nn.Dropout} <= layers
    assert {type(model.stem) for model in seen} == {nn.Linear, nn.Embedding}
    assert any(model.head.weight is getattr(model.stem, "weight", None) for model in seen)
    assert any(
        len(dict(model.named_parameters(remove_duplicate=False))) > len(dict(model.named_parameters()))
        and isinstance(model.stem, nn.Linear)
        for model in seen
    )
    assert {all(p.requires_grad for p in model.parameters()) for model in seen} == {True, False}
    assert {model.training for model in seen} == {True, False}


@few
@given(law_cases())
def test_law_case_is_reproducible_and_leaves_the_random_state_alone(law_case):
    state = torch.get_rng_state()
    one, other = law_case.model(), law_case.model()
    assert torch.equal(torch.get_rng_state(), state)
    assert not Snapshot.take(one).differences(Snapshot.take(other), "parameters", "buffers", "grads", "modes")
    assert same(law_case.data("forget"), law_case.data("forget"))
    assert not same(law_case.data("forget")[0][0], law_case.data("retain")[0][0])
    assert sum(len(y) for _, y in law_case.data("forget")) == law_case.samples


def test_snapshot_covers_every_part():
    model = SmallNet(layers=("batch-norm",))
    before = Snapshot.take(model)
    assert before.differences(Snapshot.take(model)) == []
    model.head.bias.grad = torch.ones(4)
    model.layers[0].running_mean.add_(1)
    model.stem.requires_grad_(False)
    model.layers.eval()
    torch.rand(1)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    with torch.no_grad():
        bits(model.head.bias)[0] += 1
    parts = {difference.partition("[")[0] for difference in before.differences(Snapshot.take(model))}
    assert parts == {"parameters", "buffers", "grads", "modes", "structure", "rng"}


def test_law_case_provides_every_need_of_methods_and_metrics():
    law_case = LawCase()
    model = law_case.model()
    assert len(law_case.evaluation_inputs().splits) == 4
    assert law_case.unlearning_inputs(model).model_factory is not None
    assert list(law_case.unlearning_inputs(model).forget.totals) == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
