"""The edit in pieces: bits, counts and undo log equal those of the rule on the whole tensor."""

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from unlearnkit_methods.binary_mask import BinaryMask
from unlearnkit_methods.prune import Prune
from unlearnkit_methods.ssd import SelectiveSynapticDampening
from unlearnkit_methods.ssd_adaptive import AdaptiveSynapticDampening
from unlearnkit_methods.ssd_soft import SoftSynapticDampening

from unlearnkit import ElementwiseUnlearner, Importance, MismatchError, NonFiniteError, UnlearningInputs
from unlearnkit.models import trainable
from unlearnkit.models.parameters import (
    all_finite,
    bits,
    chunk_size,
    chunks,
    count_changed,
    digest,
    extremes,
    in_memory_order,
)
from unlearnkit.models.snapshot import ModelSnapshot, UndoLog
from unlearnkit.unlearning.elementwise import RuleApplier, RuleOperands

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RULES = [SelectiveSynapticDampening(alpha=1.0, epsilon=1e-8), BinaryMask(), SoftSynapticDampening(alpha=0.3)]
OTHERS = [Prune(tau=0.5), AdaptiveSynapticDampening(alpha=1.5)]


def plain(t):
    return t


def transposed(t):
    return t.clone().transpose(0, -1) if t.dim() > 1 else t


def spaced(t):
    wide = torch.zeros(*t.shape[:-1], 2 * t.shape[-1]).to(t.dtype) if t.dim() else torch.zeros(()).to(t.dtype)
    view = wide[..., ::2] if t.dim() else wide
    return view.copy_(t)


def channels_last(t):
    return t.clone().to(memory_format=torch.channels_last) if t.dim() == 4 else t


LAYOUTS = [plain, transposed, spaced, channels_last]
SHAPES = st.sampled_from([(), (0,), (1,), (7,), (0, 3), (5, 3), (1, 11), (4, 3, 2, 2), (2, 0, 1, 1), (3, 1, 5, 1)])


def arrays(shape, seed, dtype, layout):
    generator = torch.Generator().manual_seed(seed)
    theta, forget, reference = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    reference = torch.where(torch.rand(shape, generator=generator) < 0.3, 0, reference)
    theta = layout(theta.to(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    return theta, *(t.abs().to(wide).reshape(theta.shape) for t in (forget, reference))


def whole(rule, theta, forget, reference, counts):
    """The rule on whole tensors, independent of the code under test."""
    dtype = forget.dtype
    edited = rule(theta.to(dtype), forget / counts[0], reference / counts[1])
    return torch.where(bits(edited) == bits(theta.to(dtype)), theta, edited.to(theta.dtype))


# Cutting


def test_pieces_are_split_along_the_largest_stride():
    matrix = torch.arange(6).reshape(3, 2)
    assert [a.tolist() for a, _ in chunks(matrix, matrix, limit=4)] == [[[0, 1], [2, 3]], [[4, 5]]]
    assert [a.tolist() for (a,) in chunks(matrix.t(), limit=4)] == [[[0, 2], [1, 3]], [[4], [5]]]
    assert [a.tolist() for (a,) in chunks(matrix, limit=1)] == [[[i]] for i in range(6)]


@SETTINGS
@given(SHAPES, st.sampled_from(LAYOUTS), st.integers(1, 9))
def test_every_element_is_in_exactly_one_piece_of_bounded_size(shape, layout, limit):
    lead, follower = layout(torch.zeros(shape)), torch.zeros(layout(torch.zeros(shape)).shape)
    for a, b in chunks(lead, follower, limit=limit):
        assert a.shape == b.shape
        assert a.numel() <= limit
        assert a.dim() == lead.dim()
        b.add_(1)
    assert bool((follower == 1).all())


@pytest.mark.parametrize("layout", [plain, transposed, channels_last])
def test_pieces_of_a_dense_tensor_lie_together_in_memory(layout):
    for (piece,) in chunks(layout(torch.zeros(6, 4, 3, 3)), limit=50):
        assert in_memory_order(piece)[0].is_contiguous()


# The edit


@pytest.mark.parametrize("method", RULES, ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", DTYPES)
@SETTINGS
@given(SHAPES, st.integers(0, 2**20), st.sampled_from(LAYOUTS), st.integers(1, 9))
def test_the_bits_are_those_of_the_rule_on_the_whole_tensor(method, dtype, shape, seed, layout, limit):
    theta, forget, reference = arrays(shape, seed, dtype, layout)
    expected, before = whole(method.rule, theta, forget, reference, (3, 7)), theta.clone()
    operands = RuleOperands(theta=theta, forget=forget, reference=reference, forget_terms=3, reference_terms=7)
    undo_log = UndoLog()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearnkit.unlearning.elementwise.chunk_size", lambda _: limit)
        applier = method.applier()
        copy, counted = applier.copy(operands), applier.count(operands)
        assert torch.equal(bits(theta), bits(before))
        changed = applier.write(operands, undo_log)
    assert torch.equal(bits(theta), bits(expected))
    assert torch.equal(bits(copy), bits(expected))
    assert copy.dtype == theta.dtype
    assert changed == counted == int((bits(before) != bits(expected)).sum())
    for _ in range(2):
        undo_log.undo()
        assert torch.equal(bits(theta), bits(before))


@pytest.mark.parametrize("method", RULES, ids=lambda m: m.name)
def test_a_parameter_of_many_real_pieces(method):
    theta, forget, reference = arrays((4, chunk_size(torch.device("cpu")) - 7), 1, torch.float32, plain)
    expected = whole(method.rule, theta, forget, reference, (1, 1))
    operands = RuleOperands(theta=theta, forget=forget, reference=reference, forget_terms=1, reference_terms=1)
    assert torch.equal(bits(method.applier().copy(operands)), bits(expected))


@pytest.mark.parametrize("method", [*RULES, *OTHERS], ids=lambda m: m.name)
@pytest.mark.parametrize("totals", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_method_for_weights_and_totals_of_every_dtype(method, dtype, totals, monkeypatch):
    monkeypatch.setattr("unlearnkit.unlearning.elementwise.chunk_size", lambda _: 600)
    theta, forget, reference = arrays((5003,), 0, dtype, plain)
    forget, reference = forget.to(totals), reference.to(totals)
    wide = torch.promote_types(dtype, totals)
    means = (forget / 3).to(wide), (reference / 7).to(wide)
    expected = whole(method.rule, theta, *means, (1, 1))
    operands = RuleOperands(theta=theta, forget=forget, reference=reference, forget_terms=3, reference_terms=7)
    assert torch.equal(bits(method.applier().copy(operands)), bits(expected))


@pytest.mark.parametrize("terms", [1, 97, 2**24 + 1, 2**53])
def test_means_are_divided_like_those_of_torch(terms):
    theta, forget, _ = arrays((1000,), 0, torch.float32, plain)
    seen = []
    applier = RuleApplier(lambda t, f, r: seen.append((f.clone(), r.clone())) or t, who="x")
    applier.count(RuleOperands(theta=theta, forget=forget, forget_terms=terms))
    assert torch.equal(seen[0][0], forget / terms)
    assert torch.equal(seen[0][1], torch.zeros(1000))


def test_buffers_are_used_again_for_the_next_parameter_of_any_shape_and_dtype():
    applier = RuleApplier(lambda t, f, r: t * f + r, who="x")
    for shape, dtype in (
        ((5, 3), torch.float32),
        ((2,), torch.float64),
        ((7, 2), torch.float32),
        ((1,), torch.float16),
    ):
        theta, forget, reference = arrays(shape, 1, dtype, plain)
        expected = whole(lambda t, f, r: t * f + r, theta, forget, reference, (1, 1))
        assert torch.equal(applier.copy(RuleOperands(theta=theta, forget=forget, reference=reference)), expected)
        without = applier.copy(RuleOperands(theta=theta, forget=forget))
        assert torch.equal(without, whole(lambda t, f, r: t * f + r, theta, forget, reference * 0, (1, 1)))


def test_autograd_notices_the_edit():
    weight = nn.Parameter(torch.ones(100))
    loss = (weight * weight).sum()
    operands = RuleOperands(theta=weight, forget=torch.arange(100.0))
    assert RuleApplier(lambda t, f, _: torch.where(f > 90, t / 2, t), who="x").write(operands, UndoLog()) == 9
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_model_made_and_edited_inside_inference_mode():
    with torch.inference_mode():
        model = nn.Linear(20, 20)
        ones = {n: torch.ones_like(p) for n, p in trainable(model).items()}
        f, r = Importance(totals=ones, count=1), Importance(totals={n: t / 2 for n, t in ones.items()}, count=1)
        assert BinaryMask().unlearn(model, UnlearningInputs(forget=f, reference=r)).changed == 420


def test_weight_that_was_not_finite_before_is_accepted():
    theta = torch.tensor([torch.inf, 1.0, torch.nan])
    applier, undo_log = RuleApplier(lambda t, f, _: t / f, who="mine"), UndoLog()
    assert applier.write(RuleOperands(theta=theta, forget=torch.full((3,), 2.0)), undo_log) == 1
    assert theta.tolist()[:2] == [torch.inf, 0.5]
    with pytest.raises(NonFiniteError, match="mine made NaN"):
        applier.write(RuleOperands(theta=theta, forget=torch.zeros(3)), undo_log)
    assert theta.tolist()[:2] == [torch.inf, 0.5]


def test_half_precision_is_computed_in_float32():
    seen = set()

    def look(theta, forget, reference):
        seen.update({theta.dtype, forget.dtype, reference.dtype})
        return theta * (forget / 3)

    theta = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16)
    forget = torch.tensor([1.0, 1e-3, 1e-9])
    edited = RuleApplier(look, who="x").copy(RuleOperands(theta=theta, forget=forget, forget_terms=5))
    assert seen == {torch.float32}
    assert edited.tolist() == (theta.float() * (forget / 5 / 3)).half().tolist()


def test_rule_never_gets_a_view_of_the_model_or_an_importance():
    held = []

    def keep(theta, forget, reference):
        held.extend([theta, forget, reference])
        return theta + 1

    theta, forget, reference = arrays_ = torch.ones(3), torch.ones(3), torch.ones(3)
    for terms in (None, 1, 2):
        RuleApplier(keep, who="x").copy(
            RuleOperands(theta=theta, forget=forget, reference=reference, forget_terms=terms, reference_terms=terms)
        )
    for t in held:
        t.zero_()
    assert all(bool((t == 1).all()) for t in arrays_)


def test_an_error_in_a_late_piece_undoes_the_early_ones(monkeypatch):
    monkeypatch.setattr("unlearnkit.unlearning.elementwise.chunk_size", lambda _: 2)
    calls = []

    @attrs.frozen(kw_only=True)
    class Fails(ElementwiseUnlearner):
        name = "fails"

        def rule(self, theta, _, __):
            calls.append(theta.shape)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return theta * 0

    model = nn.Linear(3, 3)
    before = digest(model)
    ones = Importance(totals={n: torch.ones_like(p) for n, p in trainable(model).items()}, count=1)
    with pytest.raises(KeyboardInterrupt):
        Fails().unlearn(model, UnlearningInputs(forget=ones, reference=ones))
    assert len(calls) == 4
    assert digest(model) == before


def test_nan_in_a_late_piece_is_found(monkeypatch):
    monkeypatch.setattr("unlearnkit.unlearning.elementwise.chunk_size", lambda _: 2)
    applier = RuleApplier(lambda t, _, __: torch.where(t == 5, torch.nan, t), who="mine")
    with pytest.raises(NonFiniteError, match="mine made NaN"):
        applier.count(RuleOperands(theta=torch.arange(6.0), forget=torch.ones(6)))


def test_an_importance_of_no_terms_has_no_mean():
    model = nn.Linear(1, 1, bias=False)
    none = Importance(totals={"weight": torch.zeros(1, 1)}, count=0)
    with pytest.raises(MismatchError, match="at least one term"):
        BinaryMask().unlearn(model, UnlearningInputs(forget=none, reference=none))


# The undo log


def test_undo_log_keeps_only_changed_weights():
    weights = torch.zeros(10_000)
    new = weights.clone()
    new[::1000] = 1
    sparse, dense, nothing = UndoLog(), UndoLog(), UndoLog()
    assert sparse.write(weights, new) == 10
    assert sparse.nbytes == 10 * (4 + 4)
    assert dense.write(weights, weights + 1) == 10_000
    assert dense.nbytes == weights.nbytes
    assert nothing.write(weights, weights.clone()) == nothing.nbytes == 0


def test_an_edit_of_few_weights_copies_no_model():
    model = nn.Linear(300, 300)
    forget = {n: torch.zeros_like(p) for n, p in trainable(model).items()}
    forget["weight"][::100] = 1
    inputs = UnlearningInputs(
        forget=Importance(totals=forget, count=1),
        reference=Importance(totals={n: torch.zeros_like(t) for n, t in forget.items()}, count=1),
    )
    method = BinaryMask()
    snapshot = ModelSnapshot(model, copies=method._needs_copy())
    assert sum(method._edit(model, inputs, snapshot.undo_log).changed.values()) == 900
    assert snapshot.undo_log.nbytes == 900 * 8
    with pytest.raises(KeyError):
        snapshot.before("weight")
    snapshot.restore()
    assert not bool((model.weight == 0).any())


def test_overlapping_writes_are_undone_in_order():
    weights, undo_log = torch.tensor([1.0, 2.0]), UndoLog()
    undo_log.write(weights, torch.tensor([5.0, 2.0]))
    undo_log.write(weights, torch.tensor([7.0, 8.0]))
    undo_log.undo()
    assert weights.tolist() == [1.0, 2.0]


def test_a_sign_of_zero_counts_and_a_nan_that_stays_does_not():
    weights, undo_log = torch.tensor([0.0, torch.nan]), UndoLog()
    assert undo_log.write(weights, torch.tensor([-0.0, torch.nan])) == 1
    assert bool(torch.signbit(weights[0]))


# The checks in one pass


@pytest.mark.parametrize("dtype", DTYPES)
@SETTINGS
@given(st.lists(st.floats(width=16), max_size=40))
def test_all_finite_and_extremes_equal_torch(dtype, values):
    t = torch.tensor(values, dtype=torch.float64).to(dtype)
    assert all_finite(t) == bool(torch.isfinite(t).all())
    if values and all_finite(t):
        assert extremes(t) == (float(t.min()), float(t.max()))


@pytest.mark.parametrize("place", [0, 5, 31, 100, 1022])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_non_finite_element_is_detected(place, value):
    t = torch.full((1023,), 3e38)
    assert all_finite(t)  # their sum is not
    t[place] = value
    assert not all_finite(t)


@pytest.mark.gpu
@pytest.mark.parametrize("method", RULES, ids=lambda m: m.name)
def test_the_same_on_a_gpu(method):
    theta, forget, reference = (t.cuda() for t in arrays((37, 50), 1, torch.float32, plain))
    before, expected = theta.clone(), whole(method.rule, theta, forget, reference, (3, 7))
    undo_log = UndoLog()
    changed = method.applier().write(
        RuleOperands(theta=theta, forget=forget, reference=reference.cpu(), forget_terms=3, reference_terms=7),
        undo_log,
    )
    assert torch.equal(bits(theta), bits(expected))
    assert changed == count_changed(before, expected)
    undo_log.undo()
    assert torch.equal(theta, before)
