"""The edit in pieces: the bits, the count and the journal are those of the rule on the whole tensor."""

import attrs
import pytest
import torch
from compiler import HAS_COMPILER
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from unlearnkit_methods.binary_mask import BinaryMask
from unlearnkit_methods.ssd import SelectiveSynapticDampening
from unlearnkit_methods.ssd_soft import SoftSynapticDampening

from unlearnkit import ElementwiseUnlearner, Importance, MismatchError, NonFiniteError, UnlearningInputs, trainable
from unlearnkit.models.parameters import all_finite, bits, count_changed, digest, extremes
from unlearnkit.models.undo_log import UndoLog
from unlearnkit.unlearning.apply_rule import Sweep
from unlearnkit.unlearning.fused.run import VARIABLE
from unlearnkit.unlearning.operands import Averaged
from unlearnkit.utils.chunks import chunk_size, chunks, in_memory_order

COMPILES = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RULES = [SelectiveSynapticDampening(alpha=1.0, epsilon=1e-8), BinaryMask(), SoftSynapticDampening(alpha=0.3)]


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
    """The rule on whole tensors, without a line of the code under test."""
    dtype = forget.dtype
    edited = rule(theta.to(dtype), forget / counts[0], reference / counts[1])
    return torch.where(bits(edited) == bits(theta.to(dtype)), theta, edited.to(theta.dtype))


# Cutting


def test_by_hand_rows_are_cut_along_the_largest_stride():
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


@pytest.mark.parametrize("how", ["plain", pytest.param("compiled", marks=COMPILES)])
@pytest.mark.parametrize("method", RULES, ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", DTYPES)
@SETTINGS
@given(SHAPES, st.integers(0, 2**20), st.sampled_from(LAYOUTS), st.integers(1, 9))
def test_the_bits_are_those_of_the_rule_on_the_whole_tensor(how, method, dtype, shape, seed, layout, limit):
    theta, forget, reference = arrays(shape, seed, dtype, layout)
    expected, before = whole(method.rule, theta, forget, reference, (3, 7)), theta.clone()
    f, r, journal = Averaged(total=forget, count=3), Averaged(total=reference, count=7), UndoLog()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearnkit.unlearning.apply_rule.chunk_size", lambda _: limit)
        patch.setenv(VARIABLE, how)
        sweep = method.sweep()
        copy, counted = sweep.copy(theta, f, r), sweep.count(theta, f, r)
        assert torch.equal(bits(theta), bits(before))
        changed = sweep.write(theta, f, r, journal=journal)
    assert torch.equal(bits(theta), bits(expected))
    assert torch.equal(bits(copy), bits(expected))
    assert copy.dtype == theta.dtype
    assert changed == counted == int((bits(before) != bits(expected)).sum())
    for _ in range(2):
        journal.undo()
        assert torch.equal(bits(theta), bits(before))


@pytest.mark.parametrize("method", RULES, ids=lambda m: m.name)
def test_a_parameter_of_many_real_pieces(method):
    theta, forget, reference = arrays(
        (4 * torch.get_num_threads(), chunk_size(torch.device("cpu")) - 7), 1, torch.float32, plain
    )
    expected = whole(method.rule, theta, forget, reference, (1, 1))
    f, r = Averaged(total=forget, count=1), Averaged(total=reference, count=1)
    assert torch.equal(bits(method.sweep().copy(theta, f, r)), bits(expected))


def test_half_precision_is_computed_in_float32():
    seen = set()

    def look(theta, forget, reference):
        seen.update({theta.dtype, forget.dtype, reference.dtype})
        return theta * (forget / 3)

    theta = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16)
    forget = torch.tensor([1.0, 1e-3, 1e-9])
    edited = Sweep(rule=look, who="x").copy(theta, Averaged(total=forget, count=5), None)
    assert seen == {torch.float32}
    assert edited.tolist() == (theta.float() * (forget / 5 / 3)).half().tolist()


def test_a_rule_never_holds_a_part_of_the_model_or_of_an_importance():
    held = []

    def keep(theta, forget, reference):
        held.extend([theta, forget, reference])
        return theta + 1

    arrays_ = torch.ones(3), torch.ones(3), torch.ones(3)
    for count in (None, 1, 2):
        Sweep(rule=keep, who="x").copy(
            arrays_[0], Averaged(total=arrays_[1], count=count), Averaged(total=arrays_[2], count=count)
        )
    for t in held:
        t.zero_()
    assert all(bool((t == 1).all()) for t in arrays_)


def test_an_error_in_a_late_piece_undoes_the_early_ones(monkeypatch):
    monkeypatch.setattr("unlearnkit.unlearning.apply_rule.chunk_size", lambda _: 2)
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
    monkeypatch.setattr("unlearnkit.unlearning.apply_rule.chunk_size", lambda _: 2)
    sweep = Sweep(rule=lambda t, _, __: torch.where(t == 5, torch.nan, t), who="mine")
    with pytest.raises(NonFiniteError, match="mine made NaN"):
        sweep.count(torch.arange(6.0), Averaged(total=torch.ones(6)), None)


def test_an_importance_of_no_terms_has_no_mean():
    model = nn.Linear(1, 1, bias=False)
    none = Importance(totals={"weight": torch.zeros(1, 1)}, count=0)
    with pytest.raises(MismatchError, match="at least one term"):
        BinaryMask().unlearn(model, UnlearningInputs(forget=none, reference=none))


# The journal


def test_the_journal_keeps_what_changed_and_no_more():
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
    guard = method._guard(model)
    assert sum(method._edit(model, inputs, guard).changed.values()) == 900
    assert guard.journal.nbytes == 900 * 8
    with pytest.raises(KeyError):
        guard.before("weight")
    guard.restore()
    assert not bool((model.weight == 0).any())


def test_two_writes_to_one_place_are_undone_in_order():
    weights, journal = torch.tensor([1.0, 2.0]), UndoLog()
    journal.write(weights, torch.tensor([5.0, 2.0]))
    journal.write(weights, torch.tensor([7.0, 8.0]))
    journal.undo()
    assert weights.tolist() == [1.0, 2.0]


def test_a_sign_of_zero_counts_and_a_nan_that_stays_does_not():
    weights, journal = torch.tensor([0.0, torch.nan]), UndoLog()
    assert journal.write(weights, torch.tensor([-0.0, torch.nan])) == 1
    assert bool(torch.signbit(weights[0]))


# The checks in one pass


@pytest.mark.parametrize("dtype", DTYPES)
@SETTINGS
@given(st.lists(st.floats(width=16), max_size=40))
def test_finite_and_extremes_equal_the_slow_way(dtype, values):
    t = torch.tensor(values, dtype=torch.float64).to(dtype)
    assert all_finite(t) == bool(torch.isfinite(t).all())
    if values and all_finite(t):
        assert extremes(t) == (float(t.min()), float(t.max()))


@pytest.mark.parametrize("place", [0, 5, 31, 100, 1022])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_element_anywhere_is_seen(place, value):
    t = torch.full((1023,), 3e38)
    assert all_finite(t)  # their sum is not
    t[place] = value
    assert not all_finite(t)


@pytest.mark.gpu
@pytest.mark.parametrize("method", RULES, ids=lambda m: m.name)
def test_the_same_on_a_gpu(method):
    theta, forget, reference = (t.cuda() for t in arrays((37, 50), 1, torch.float32, plain))
    before, expected = theta.clone(), whole(method.rule, theta, forget, reference, (3, 7))
    f, r, journal = Averaged(total=forget, count=3), Averaged(total=reference.cpu(), count=7), UndoLog()
    changed = method.sweep().write(theta, f, r, journal=journal)
    assert torch.equal(bits(theta), bits(expected))
    assert changed == count_changed(before, expected)
    journal.undo()
    assert torch.equal(theta, before)
