"""Elementwise methods: one rule for each weight, checked before and after."""

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unlearnkit import (
    ConfigurationError,
    ElementwiseUnlearner,
    Importance,
    MismatchError,
    Need,
    NonFiniteError,
    UnlearningInputs,
    option,
)
from unlearnkit.models.parameters import bits, digest, trainable
from unlearnkit.testing import broken_laws

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@attrs.frozen(kw_only=True)
class Rule(ElementwiseUnlearner):
    """A method with a given rule."""

    name = "rule"
    _body: object

    def rule(self, theta, forget, reference):
        return self._body(theta, forget, reference)


def halve(theta, forget, reference):
    return torch.where(forget > reference, theta / 2, theta)


def same(theta, _, __):
    return theta


def importance(model, value):
    return Importance(totals={n: torch.full_like(p, value).float() for n, p in trainable(model).items()}, count=1)


def edit(body, theta, forget=None, reference=None):
    zeros = torch.zeros(theta.shape)
    return Rule(body=body).edit(theta, zeros if forget is None else forget, zeros if reference is None else reference)


def test_worked_example_of_a_rule():
    theta = torch.tensor([1.0, 2.0, 3.0])
    edited = edit(halve, theta, torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
    assert edited.tolist() == [1.0, 1.0, 3.0]
    assert theta.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("dtype", DTYPES)
@SETTINGS
@given(st.lists(st.tuples(*[st.floats(0, 60000, width=16)] * 3), min_size=1, max_size=8))
def test_equals_the_loop_over_weights_in_python(dtype, rows):
    theta = torch.tensor([row[0] for row in rows], dtype=torch.float64).to(dtype)
    forget, reference = (torch.tensor([row[i] for row in rows]) for i in (1, 2))
    want = [t / 2 if f > r else t for t, f, r in zip(theta.tolist(), forget.tolist(), reference.tolist(), strict=True)]
    edited = edit(halve, theta, forget, reference)
    assert edited.dtype == dtype
    assert torch.equal(bits(edited), bits(torch.tensor(want, dtype=torch.float64).to(dtype)))


@pytest.mark.parametrize(("dtype", "words"), [(torch.float16, 16), (torch.bfloat16, 16), (torch.float32, 32)])
@SETTINGS
@given(st.data())
def test_unchanged_elements_keep_their_bits_including_nan_and_zeros(dtype, words, data):
    integer = {16: torch.int16, 32: torch.int32}[words]
    drawn = data.draw(st.lists(st.integers(-(2 ** (words - 1)), 2 ** (words - 1) - 1), min_size=1, max_size=8))
    theta = torch.tensor(drawn, dtype=integer).view(dtype)
    assert torch.equal(bits(edit(same, theta)), bits(theta))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sign_of_zero_that_the_rule_changes_is_changed_in_every_dtype(dtype):
    edited = edit(lambda t, _, __: torch.zeros_like(t), torch.tensor([-0.0], dtype=dtype))
    assert not torch.signbit(edited).any()


def test_the_rule_sees_at_least_float32_and_the_dtype_of_the_importances():
    seen = []

    def look(theta, forget, reference):
        seen.append((theta.dtype, forget.dtype, reference.dtype, theta.requires_grad, torch.is_grad_enabled()))
        return theta

    edit(look, nn.Parameter(torch.ones(2, dtype=torch.float16)))
    edit(look, torch.ones(2), torch.ones(2, dtype=torch.float64))
    assert seen == [(torch.float32,) * 3 + (False, False), (torch.float64,) * 3 + (False, False)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda t, _, __: t[:1], r"method 'rule': rule\(\) must return shape \(3,\), torch.float32.*saw \(1,\)"),
        (lambda t, _, __: t.sum(), r"saw \(\)"),
        (lambda t, _, __: t.double(), r"saw \(3,\), torch.float64"),
        (lambda t, _, __: t > 0, r"torch.bool"),
        (lambda t, _, __: t.to("meta"), r"on meta"),
        (lambda _, __, ___: None, r"must return a tensor, saw NoneType"),
        (lambda t, _, __: t.numpy(), r"saw ndarray"),
        (lambda t, _, __: t.mul_(0), r"must not edit its arguments in place: return a new tensor"),
        (lambda t, f, _: t + f.add_(1), r"in place"),
        (lambda t, _, r: t + r.view(-1).add_(1), r"in place"),
    ],
)
def test_a_wrong_rule_is_refused(body, said):
    theta, forget, reference = torch.ones(3), torch.ones(3), torch.ones(3)
    with pytest.raises(MismatchError, match=said):
        edit(body, theta, forget, reference)
    assert all(bool((t == 1).all()) for t in (theta, forget, reference))


def test_rule_that_writes_through_numpy_does_not_change_its_inputs():
    def sly(theta, forget, reference):
        for t in (theta, forget, reference):
            t.numpy()[:] = 7
        return theta

    theta, forget, reference = torch.ones(3), torch.ones(3), torch.ones(3)
    assert edit(sly, theta, forget, reference).tolist() == [7.0] * 3
    assert all(bool((t == 1).all()) for t in (theta, forget, reference))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_made_of_finite_weights_is_refused_beside_a_weight_that_was_nan_before(value):
    def spoil(theta, _, __):
        return torch.where(theta == 1, value, theta)

    with pytest.raises(NonFiniteError, match=r"method 'rule': rule\(\) made NaN or infinity of finite weights"):
        edit(spoil, torch.tensor([1.0, 2.0]))
    with pytest.raises(NonFiniteError):
        edit(spoil, torch.tensor([1.0, torch.nan]))
    assert edit(spoil, torch.tensor([2.0, torch.nan]))[0] == 2


def test_overflow_in_the_cast_to_half_precision_is_refused():
    with pytest.raises(NonFiniteError):
        edit(lambda t, _, __: t * 1000, torch.tensor([1000.0], dtype=torch.float16))


def test_importances_are_matched_by_name_in_any_order():
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    forget = Importance(totals={"bias": torch.tensor([2.0, 0.0]), "weight": torch.zeros(2, 2)}, count=1)
    report = Rule(body=halve).unlearn(model, UnlearningInputs(forget=forget, reference=importance(model, 1.0)))
    assert torch.equal(model.weight, before["weight"])
    assert model.bias.tolist() == [before["bias"][0] / 2, before["bias"][1]]
    assert [(t.name, t.size, t.changed) for t in report.tensors] == [("weight", 4, 0), ("bias", 2, 1)]


def test_means_are_compared_unless_they_are_unnormalised():
    model = nn.Linear(1, 1, bias=False)
    forget, reference = importance(model, 3.0), attrs.evolve(importance(model, 4.0), count=2, samples=2)
    value = model.weight.item()
    Rule(body=halve).unlearn(model, UnlearningInputs(forget=forget, reference=reference))
    assert model.weight.item() == value / 2
    Rule(body=halve).unlearn(model, UnlearningInputs(forget=forget.unnormalised(), reference=reference.unnormalised()))
    assert model.weight.item() == value / 2


@pytest.mark.parametrize("use", [lambda r: r * 2, lambda r: r > 0, lambda r: r.shape, torch.zeros_like])
def test_a_rule_cannot_use_a_reference_that_its_method_does_not_declare(use):
    class Uses(ElementwiseUnlearner):
        name, needs = "uses", frozenset({Need.FORGET_IMPORTANCE})

        def rule(self, theta, _, reference):
            use(reference)
            return theta

    model = nn.Linear(2, 2)
    one = Importance(totals={name: torch.ones_like(p) for name, p in model.named_parameters()}, count=1)
    for inputs in (UnlearningInputs(forget=one), UnlearningInputs(forget=one, reference=one)):
        with pytest.raises(ConfigurationError, match=r"add Need.REFERENCE_IMPORTANCE to the needs") as caught:
            Uses().unlearn(model, inputs)
        assert "while 'uses' edited 'weight'" in caught.value.__notes__
    assert "add Need.REFERENCE_IMPORTANCE" in str(broken_laws(Uses(), examples=2)["runs"])


def test_prepare_may_return_a_copy_that_edits():
    @attrs.frozen(kw_only=True)
    class Above(ElementwiseUnlearner):
        name = "above"
        limit: float = option(0.0, doc="threshold")

        def prepare(self, forget, reference):
            largest = max(float(t.max()) for t in forget.mean().values())
            return attrs.evolve(self, limit=largest * reference.count)

        def rule(self, theta, forget, reference):  # noqa: ARG002 - the signature is the framework's
            return torch.where(forget >= self.limit, torch.zeros_like(theta), theta)

    model, method = nn.Linear(2, 1), Above()
    forget = Importance(totals={"weight": torch.tensor([[1.0, 5.0]]), "bias": torch.tensor([5.0])}, count=1)
    report = method.unlearn(model, UnlearningInputs(forget=forget, reference=importance(model, 0.0)))
    assert [t.changed for t in report.tensors] == [1, 1]
    assert method.limit == 0.0


def test_an_error_in_the_rule_names_the_parameter_and_undoes_the_others():
    def fail_on_bias(theta, _, __):
        if theta.dim() == 1:
            raise ZeroDivisionError("mine")
        return theta * 0

    model = nn.Linear(2, 2)
    before = digest(model)
    inputs = UnlearningInputs(forget=importance(model, 1.0), reference=importance(model, 1.0))
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        Rule(body=fail_on_bias).unlearn(model, inputs)
    assert caught.value.__notes__ == ["while 'rule' edited 'bias'"]
    assert digest(model) == before


def test_an_edit_inside_inference_mode():
    model = nn.Linear(2, 2).half()
    with torch.inference_mode():
        inputs = UnlearningInputs(forget=importance(model, 2.0), reference=importance(model, 1.0))
        assert Rule(body=halve).unlearn(model, inputs).changed == 6
