"""Rules in compiled form: the bits of torch, undone by a packed journal, and left to torch where torch must do it."""

import logging

import attrs
import pytest
import torch
from compiler import HAS_COMPILER
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from unlearnkit_methods.binary_mask import BinaryMask
from unlearnkit_methods.prune import Prune
from unlearnkit_methods.ssd import SelectiveSynapticDampening
from unlearnkit_methods.ssd_adaptive import AdaptiveSynapticDampening
from unlearnkit_methods.ssd_soft import SoftSynapticDampening

from unlearnkit import (
    ConfigurationError,
    ElementwiseUnlearner,
    Importance,
    NonFiniteError,
    UnlearningInputs,
    UnlearnKitWarning,
    trainable,
)
from unlearnkit.models.packed import Packed
from unlearnkit.models.parameters import bits, digest
from unlearnkit.models.undo_log import UndoLog
from unlearnkit.unlearning.apply_rule import Sweep, keeper
from unlearnkit.unlearning.fused import run as fused_run
from unlearnkit.unlearning.fused.arrays import Arrays
from unlearnkit.unlearning.fused.kernel import compile_rule
from unlearnkit.unlearning.fused.operations import Question
from unlearnkit.unlearning.fused.run import VARIABLE, Fused, fused
from unlearnkit.unlearning.fused.trace import translate
from unlearnkit.unlearning.operands import Averaged, RuleOperands
from unlearnkit.utils.compiled import load

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
KINDS = [*((d, torch.float32) for d in DTYPES[1:]), *((d, torch.float64) for d in DTYPES)]
METHODS = [
    SelectiveSynapticDampening(alpha=1.0, epsilon=1e-8),
    SoftSynapticDampening(alpha=0.3),
    BinaryMask(),
    Prune(tau=0.5),
    AdaptiveSynapticDampening(alpha=1.5),
]

CASES = [(m, *KINDS[0]) for m in METHODS] + [(METHODS[0], *kind) for kind in KINDS[1:]]


def halve(t, f, r):
    return torch.where(f > r, t / 2, t)


@pytest.fixture
def small_steps(monkeypatch):
    """Two threads, pieces of 600 weights and calls of two pieces, so that a small parameter has many."""
    monkeypatch.setattr("unlearnkit.unlearning.fused.passage._PIECE", 600)
    monkeypatch.setattr("unlearnkit.unlearning.fused.passage._CALL", 2)
    monkeypatch.setattr("unlearnkit.unlearning.fused.passage._PIECES_PER_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def arrays(size, *, dtype=torch.float32, totals=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta, forget, reference = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(3))
    reference = torch.where(torch.rand(size, generator=generator) < 0.2, 0.0, reference)
    return theta.to(dtype), forget.abs().to(totals), reference.abs().to(totals)


def sweeps(rule):
    """The same rule in compiled form and by torch."""
    return (
        Sweep(rule=rule, who="a rule", fused=Fused(rule, who="a rule", required=True)),
        Sweep(rule=rule, who="a rule"),
    )


def check(rule, theta, forget, reference, counts=(3, 7)):
    """Edit twice, by compiled code and by torch, and undo; return the journal."""
    compiled, plain = sweeps(rule)
    f = Averaged(total=forget, count=counts[0])
    r = None if reference is None else Averaged(total=reference, count=counts[1])
    before, want, journal = theta.clone(), plain.copy(theta, f, r), UndoLog()
    assert compiled.fused.run([RuleOperands(theta.clone(), f, r)], plainly=plain.copy) != [None], "compiled code did it"
    count = compiled.count(theta, f, r)
    assert torch.equal(bits(theta), bits(before))
    assert torch.equal(bits(compiled.copy(theta, f, r)), bits(want))
    assert compiled.write(theta, f, r, journal=journal) == count == int((bits(want) != bits(before)).sum())
    assert torch.equal(bits(theta), bits(want))
    for _ in range(2):
        journal.undo()
        assert torch.equal(bits(theta), bits(before))
    return journal


# The bits


@pytest.mark.parametrize(("method", "dtype", "totals"), CASES, ids=lambda x: getattr(x, "name", str(x)))
@pytest.mark.usefixtures("small_steps")
def test_every_method_that_ships(method, dtype, totals):
    check(method.rule, *arrays((5003,), dtype=dtype, totals=totals))


@pytest.mark.parametrize("size", [1, 7, 8, 63, 64, 65, 511, 512, 513, 1023, 1024, 2048, 4099])
@pytest.mark.usefixtures("small_steps")
def test_every_size(size):
    check(halve, *arrays((size,)))


@pytest.mark.parametrize(("dtype", "words"), [(torch.float16, 16), (torch.bfloat16, 16), (torch.float32, 32)])
@SETTINGS
@given(st.data())
def test_any_bits_are_edited_as_by_torch_nan_zeros_and_subnormals_included(dtype, words, data):
    integer = {16: torch.int16, 32: torch.int32}[words]
    drawn = data.draw(st.lists(st.integers(-(2 ** (words - 1)), 2 ** (words - 1) - 1), min_size=1, max_size=8))
    theta = torch.tensor(drawn, dtype=integer).view(dtype)
    forget = torch.tensor(data.draw(st.lists(st.floats(0, width=32), min_size=len(drawn), max_size=len(drawn))))
    compiled, plain = sweeps(halve)
    args = Averaged(total=forget), Averaged(total=torch.full_like(forget, 1e-40))
    assert torch.equal(bits(compiled.copy(theta, *args)), bits(plain.copy(theta, *args)))
    finite = bool(torch.isfinite(theta).all())
    # What is finite is not left to torch.
    assert (compiled.fused.run([RuleOperands(theta.clone(), *args)], plainly=plain.copy) != [None]) == finite


def test_half_precision_rounds_as_torch_does():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        theta = every.view(dtype)
        theta = theta[torch.isfinite(theta)]
        check(lambda t, f, _: t * (0.3 + f), theta, torch.full(theta.shape, 0.013), None)


@pytest.mark.parametrize("count", [None, 1, 97, 2**24 + 1, 2**53])
def test_means_are_divided_like_those_of_torch(count):
    theta, forget, reference = arrays((1000,))
    check(lambda t, f, r: t * f + r, theta, forget, reference, counts=(count, 3))


def test_a_rule_without_reference_sees_zeros():
    theta, forget, _ = arrays((1000,))
    check(lambda t, f, r: torch.where(f > r, r, t), theta, forget, None)


@pytest.mark.parametrize("turn", [lambda t: t.t(), lambda t: t.view(5, 6, 2, 4).to(memory_format=torch.channels_last)])
def test_arrays_that_lie_alike_in_any_order(turn):
    check(halve, *(turn(t) for t in arrays((5 * 6, 8))))


def test_arrays_that_lie_differently_are_left_to_torch():
    theta, forget, reference = arrays((6, 8))
    compiled, plain = sweeps(halve)
    args = Averaged(total=forget.t().contiguous().t()), Averaged(total=reference)
    assert compiled.fused.run([RuleOperands(theta, *args)], plainly=plain.copy) == [None]
    assert torch.equal(compiled.copy(theta, *args), plain.copy(theta, *args))


# What is left to torch


@pytest.mark.parametrize("place", [0, 700, 2047, 4000])
@pytest.mark.usefixtures("small_steps")
def test_an_infinite_result_undoes_the_compiled_edit_and_torch_does_it(place):
    theta, forget, reference = arrays((4099,))
    theta[place] = torch.inf
    compiled, plain = sweeps(halve)
    args, before, journal = (Averaged(total=forget), Averaged(total=reference)), theta.clone(), UndoLog()
    assert compiled.fused.run([RuleOperands(theta, *args)], plainly=plain.copy, journal=journal) == [None]
    assert torch.equal(theta, before)
    want = plain.copy(theta, *args)
    assert compiled.count(theta, *args) == plain.count(theta, *args)
    assert torch.equal(compiled.copy(theta, *args), want)
    assert compiled.write(theta, *args, journal=journal) == plain.count(before, *args)
    assert torch.equal(theta, want)
    journal.undo()
    assert torch.equal(theta, before)


@pytest.mark.usefixtures("small_steps")
def test_nan_made_of_finite_weights_names_the_method_and_leaves_the_model(monkeypatch):
    @attrs.frozen(kw_only=True)
    class Breaks(ElementwiseUnlearner):
        name = "breaks"

        def rule(self, theta, forget, reference):
            return torch.where(forget > 1, theta * reference / 0, theta / 2)

    monkeypatch.setenv(VARIABLE, "compiled")
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60))
    before, totals = digest(model), {n: torch.ones_like(p) for n, p in trainable(model).items()}
    late = {**totals, "1.weight": totals["1.weight"].clone()}
    late["1.weight"][50, 3] = 2
    inputs = UnlearningInputs(forget=Importance(totals=late, count=1), reference=Importance(totals=totals, count=1))
    with pytest.raises(NonFiniteError, match=r"method 'breaks': rule\(\) made NaN") as caught:
        Breaks().unlearn(model, inputs)
    assert caught.value.__notes__ == ["while 'breaks' edited '1.weight'"]
    assert digest(model) == before


@pytest.mark.parametrize("interrupted", [0, 1, 3, 6])
@pytest.mark.usefixtures("small_steps")
def test_an_interrupt_between_two_calls_is_undone(monkeypatch, interrupted):
    calls = []

    def interrupting(*args):
        kernel = compile_rule(*args)

        def call(*values):
            changed = kernel.edit(*values)
            calls.append(changed)
            if len(calls) == interrupted + 2:  # the first compares with torch
                raise KeyboardInterrupt
            return changed

        return attrs.evolve(kernel, edit=call)

    monkeypatch.setattr(fused_run, "compile_rule", interrupting)
    monkeypatch.setattr(fused_run, "_compared", {})
    monkeypatch.setattr(fused_run, "_COMPARED", 100)
    theta, forget, reference = arrays((8 * 1024,))
    before, journal = theta.clone(), UndoLog()
    with pytest.raises(KeyboardInterrupt):
        sweeps(halve)[0].write(theta, Averaged(total=forget), Averaged(total=reference), journal=journal)
    assert not torch.equal(theta, before)
    journal.undo()
    assert torch.equal(theta, before)


@pytest.mark.usefixtures("small_steps")
def test_of_many_parameters_only_the_one_with_an_infinite_result_is_left_to_torch():
    sizes, dtypes = (5, 2000, 4099, 1, 700), (torch.float32, torch.float32, torch.float32, torch.float16, torch.float32)
    trios = []
    for seed, (size, dtype) in enumerate(zip(sizes, dtypes, strict=True)):
        theta, forget, reference = arrays((size,), dtype=dtype, seed=seed)
        trios.append(RuleOperands(theta, Averaged(total=forget, count=2), Averaged(total=reference, count=3)))
    trios[2].theta[3000] = torch.inf
    before, (compiled, plain), journal = [t.theta.clone() for t in trios], sweeps(halve), UndoLog()
    want = [plain.copy(t.theta, t.forget, t.reference) for t in trios]
    counts = [int((bits(w) != bits(b)).sum()) for w, b in zip(want, before, strict=True)]
    expected = [*counts[:2], None, *counts[3:]]
    assert compiled.at_once(trios) == expected
    assert all(torch.equal(t.theta, b) for t, b in zip(trios, before, strict=True))
    assert compiled.at_once(trios, journal=journal) == expected
    done = [w if count is not None else b for w, b, count in zip(want, before, expected, strict=True)]
    assert all(torch.equal(t.theta, d) for t, d in zip(trios, done, strict=True))
    assert compiled.by_torch(trios[2], journal=journal) == counts[2]
    journal.undo()
    assert all(torch.equal(t.theta, b) for t, b in zip(trios, before, strict=True))


# What only torch can compute


def fading(t, f, r):
    return torch.where(f > r, t * torch.exp(-torch.sqrt(f / (r + 1))), t)


@pytest.fixture
def small_questions(monkeypatch, small_steps):
    """Pieces of 640 weights: whole vectors, at whose end torch computes as elsewhere."""
    monkeypatch.setattr("unlearnkit.unlearning.fused.passage._PIECE", 640)
    monkeypatch.setattr("unlearnkit.unlearning.fused.passage._CALL", 3)
    monkeypatch.setattr("unlearnkit.unlearning.fused.passage._ASKED_PER_THREAD", 1)


@pytest.mark.parametrize(("dtype", "totals"), KINDS)
@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.usefixtures("small_questions")
def test_what_torch_answers_between_two_compiled_passes(dtype, totals, reference):
    theta, forget, other = arrays((7 * 640 + 64,), dtype=dtype, totals=totals)
    check(fading, theta, forget, other if reference else None)


@pytest.mark.usefixtures("small_questions")
def test_questions_about_many_parameters_and_one_that_is_left_to_torch():
    trios = []
    for seed, size in enumerate((64, 2048, 128, 4096 + 64, 640)):
        theta, forget, reference = arrays((size,), seed=seed)
        trios.append(RuleOperands(theta, Averaged(total=forget, count=2), Averaged(total=reference, count=3)))
    trios[3].theta[3000] = torch.inf
    before, (compiled, plain), journal = [t.theta.clone() for t in trios], sweeps(fading), UndoLog()
    want = [plain.copy(t.theta, t.forget, t.reference) for t in trios]
    counts = [int((bits(w) != bits(b)).sum()) for w, b in zip(want, before, strict=True)]
    expected = [*counts[:3], None, counts[4]]
    assert compiled.at_once(trios) == expected
    assert all(torch.equal(t.theta, b) for t, b in zip(trios, before, strict=True))
    assert compiled.at_once(trios, journal=journal) == expected
    assert all(torch.equal(t.theta, w) for t, w, n in zip(trios, want, expected, strict=True) if n is not None)
    assert torch.equal(trios[3].theta, before[3])
    journal.undo()
    assert all(torch.equal(t.theta, b) for t, b in zip(trios, before, strict=True))


@pytest.mark.usefixtures("small_questions")
def test_an_interrupt_while_torch_answers_is_undone(monkeypatch):
    theta, forget, reference = arrays((8 * 640,))
    compiled, args = sweeps(fading)[0], (Averaged(total=forget), Averaged(total=reference))
    before, journal = theta.clone(), UndoLog()
    compiled.count(theta, *args)
    asked = []
    answer = Question.answer

    def interrupting(self, numbers):
        asked.append(numbers)
        if len(asked) == 6:
            raise KeyboardInterrupt
        answer(self, numbers)

    monkeypatch.setattr(Question, "answer", interrupting)
    with pytest.raises(KeyboardInterrupt):
        compiled.write(theta, *args, journal=journal)
    assert not torch.equal(theta, before)
    journal.undo()
    assert torch.equal(theta, before)


def test_answers_are_compared_on_whole_vectors_only(monkeypatch):
    """Torch may round the last numbers of a tensor otherwise: that is no reason to call a rule wrong."""
    monkeypatch.setattr(fused_run, "_compared", {})
    lengths = []
    head = Arrays.head
    monkeypatch.setattr(Arrays, "head", lambda self, length: lengths.append(length) or head(self, length))
    trios = [RuleOperands(t, Averaged(total=f), Averaged(total=r)) for t, f, r in (arrays((63,)), arrays((1000,)))]
    for rule in (fading, halve):
        compiled, plain = sweeps(rule)
        assert None not in compiled.fused.run(trios, plainly=plain.copy)
    assert lengths == [960, 63]
    compiled, plain = sweeps(lambda t, f, _: t * torch.exp(-f))
    assert compiled.fused.run(trios[:1], plainly=plain.copy) == [None], "too few to tell: torch does it"


def test_nan_that_an_answer_makes_names_the_method():
    theta, forget, reference = arrays((640,))
    compiled = sweeps(lambda t, f, _: t * torch.log(-f))[0]
    with pytest.raises(NonFiniteError, match="a rule made NaN"):
        compiled.write(theta, Averaged(total=forget), Averaged(total=reference), journal=UndoLog())


# The journal


def test_old_values_of_more_than_a_share_and_of_more_than_a_call(monkeypatch):
    monkeypatch.setattr("unlearnkit.unlearning.fused.passage._CALL", 70)
    check(lambda t, *_: t * 2, *arrays((2_000_003,), dtype=torch.float64, totals=torch.float64))


def test_the_journal_keeps_a_bit_for_each_weight_and_the_values_that_changed():
    theta = torch.ones(1 << 16)
    forget = torch.zeros_like(theta)
    forget[::1000] = 1
    assert check(halve, theta, forget, torch.zeros_like(theta)).nbytes == (1 << 16) // 8 + 66 * 4
    assert check(halve, theta, torch.zeros_like(theta), forget).nbytes == 0


def test_undo_since_a_mark_leaves_what_was_before():
    theta, forget, reference = arrays((3000,))
    compiled, args, journal = sweeps(halve)[0], (Averaged(total=forget), Averaged(total=reference)), UndoLog()
    compiled.write(theta, *args, journal=journal)
    once, mark = theta.clone(), len(journal)
    compiled.write(theta, *args, journal=journal)
    journal.undo(since=mark)
    assert torch.equal(theta, once)


def test_autograd_hears_of_the_edit():
    weight, (_, forget, reference) = nn.Parameter(torch.ones(100)), arrays((100,))
    loss = (weight * weight).sum()
    sweeps(halve)[0].write(weight, Averaged(total=forget), Averaged(total=reference), journal=UndoLog())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inside_inference_mode(monkeypatch):
    monkeypatch.setenv(VARIABLE, "compiled")
    with torch.inference_mode():
        model = nn.Linear(20, 20)
        ones = {n: torch.ones_like(p) for n, p in trainable(model).items()}
        f, r = Importance(totals=ones, count=1), Importance(totals={n: t / 2 for n, t in ones.items()}, count=1)
        assert BinaryMask().unlearn(model, UnlearningInputs(forget=f, reference=r)).changed == 420


# When


def test_only_many_weights_are_worth_it_unless_the_environment_says_so(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert fused(halve, who="x", weights=(1 << 22) - 1) is None
    assert fused(halve, who="x", weights=1 << 22) is not None
    monkeypatch.setenv(VARIABLE, "plain")
    assert fused(halve, who="x", weights=1 << 30) is None
    monkeypatch.setenv(VARIABLE, "compiled")
    assert fused(halve, who="x", weights=0) is not None
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ConfigurationError, match="expected UNLEARNKIT_EDIT to be auto, compiled or plain, saw 'fast'"):
        fused(halve, who="x", weights=0)


def test_a_large_model_is_edited_by_compiled_code_and_the_report_counts(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    calls = []
    monkeypatch.setattr(fused_run, "compile_rule", lambda *args: calls.append(args) or compile_rule(*args))
    model = nn.Linear(2048, 2048)
    forget = {n: torch.rand_like(p) for n, p in trainable(model).items()}
    reference = {n: torch.rand_like(p) for n, p in trainable(model).items()}
    inputs = UnlearningInputs(
        forget=Importance(totals=forget, count=2), reference=Importance(totals=reference, count=5)
    )
    want = {n: torch.where(forget[n] / 2 > reference[n] / 5, 0.0, p.detach()) for n, p in trainable(model).items()}
    changed = sum(int((want[n] != p).sum()) for n, p in trainable(model).items())
    assert BinaryMask().unlearn(model, inputs).changed == changed
    assert all(torch.equal(p, want[n]) for n, p in trainable(model).items())
    assert len(calls) == 1


def test_a_rule_that_cannot_be_compiled_is_left_to_torch_or_refused_when_compiling_is_asked_for(monkeypatch, caplog):
    def rule(t, f, r):
        return t / (1 + torch.relu(f / r))

    theta, forget, reference = arrays((100,))
    args = Averaged(total=forget), Averaged(total=reference + 1)
    loose = Sweep(rule=rule, who="a rule", fused=Fused(rule, who="a rule"))
    with caplog.at_level(logging.INFO, logger="unlearnkit"):
        assert torch.equal(loose.copy(theta, *args), rule(theta, forget, reference + 1))
    assert "a rule is left to torch: torch.relu is not among the operations that are compiled" in caplog.text
    with pytest.raises(ConfigurationError, match=r"a rule cannot be compiled \(torch.relu is not among"):
        sweeps(rule)[0].copy(theta, *args)


def falling(t, f, r):
    return torch.where(f > r, t / (1 + torch.relu(f)), t)  # relu has no translation


@pytest.mark.parametrize(("dtype", "totals"), KINDS)
def test_what_torch_computes_is_compared_kept_and_written_by_compiled_code(monkeypatch, dtype, totals):
    monkeypatch.setattr("unlearnkit.unlearning.apply_rule.chunk_size", lambda _: 700)
    monkeypatch.setattr(fused_run, "_COMPARED", 100)
    theta, forget, reference = arrays((40, 100), dtype=dtype, totals=totals)
    f, r, plain = Averaged(total=forget, count=3), Averaged(total=reference), Sweep(rule=falling, who="a rule")
    kept = attrs.evolve(plain, keeper=keeper("a rule"))
    before, want, journal = theta.clone(), plain.copy(theta, f, r), UndoLog()
    assert kept.count(theta, f, r) == plain.count(theta, f, r) > 0
    assert torch.equal(bits(theta), bits(before))
    assert kept.write(theta, f, r, journal=journal) == plain.count(before, f, r)
    assert torch.equal(bits(theta), bits(want))
    changed = int((bits(want) != bits(before)).sum())
    assert 0 < journal.nbytes <= changed * dtype.itemsize + len(journal) * 700  # bits, not places
    for _ in range(2):
        journal.undo()
        assert torch.equal(bits(theta), bits(before))


def test_a_piece_that_is_not_finite_is_blamed_as_without_compiled_code(monkeypatch):
    monkeypatch.setattr("unlearnkit.unlearning.apply_rule.chunk_size", lambda _: 50)
    sweep = Sweep(rule=lambda t, f, _: t / torch.exp(-f), who="mine", keeper=keeper("mine"))
    theta, forget, _ = arrays((200,))
    theta[3] = torch.inf  # was not finite before: no fault of the rule's
    before, journal = theta.clone(), UndoLog()
    sweep.write(theta, Averaged(total=forget), None, journal=journal)
    assert torch.equal(theta, before / torch.exp(-forget))
    journal.undo()
    forget[170] = 1000
    with pytest.raises(NonFiniteError, match="mine made NaN"):
        sweep.write(theta, Averaged(total=forget), None, journal=journal)
    journal.undo()
    assert torch.equal(theta, before)


def test_a_large_model_whose_rule_is_left_to_torch_has_a_compiled_keeper(monkeypatch):
    @attrs.frozen(kw_only=True)
    class Falling(ElementwiseUnlearner):
        name = "falling"

        def rule(self, theta, forget, reference):
            return falling(theta, forget, reference)

    monkeypatch.delenv(VARIABLE, raising=False)
    assert Falling().sweep(weights=1 << 22).keeper is not None
    assert Falling().sweep(weights=1).keeper is None
    theta, forget, reference = arrays((100,))
    args, journal = (Averaged(total=forget), Averaged(total=reference)), UndoLog()
    Falling().sweep(weights=1 << 22).write(theta, *args, journal=journal)
    assert [type(entry) for entry in journal._entries] == [Packed]


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path))
    load.cache_clear()
    yield
    load.cache_clear()


@pytest.mark.usefixtures("empty_cache")
def test_without_a_compiler_torch_does_it_and_the_log_says_why(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    theta, forget, reference = arrays((100,))
    args = Averaged(total=forget), Averaged(total=reference)
    with caplog.at_level(logging.INFO, logger="unlearnkit"):
        edited = Sweep(rule=halve, who="a rule", fused=Fused(halve, who="a rule")).copy(theta, *args)
    assert torch.equal(edited, halve(theta, forget, reference))
    assert "need a C++ compiler" in caplog.text
    with pytest.raises(ConfigurationError, match="need a C"):
        sweeps(halve)[0].copy(theta, *args)


@pytest.mark.usefixtures("empty_cache")
def test_a_compiler_that_fails_is_a_warning(monkeypatch):
    monkeypatch.setattr("unlearnkit.unlearning.fused.kernel._FLAGS", ("-no-such-flag",))
    theta, forget, reference = arrays((100,))
    sweep = Sweep(rule=halve, who="a rule", fused=Fused(halve, who="a rule"))
    with pytest.warns(UnlearnKitWarning, match="a rule is left to torch: .*no-such-flag"):
        edited = sweep.copy(theta, Averaged(total=forget), Averaged(total=reference))
    assert torch.equal(edited, halve(theta, forget, reference))


def test_code_that_gives_other_bits_than_torch_is_not_used(monkeypatch):
    monkeypatch.setattr(
        fused_run, "translate", lambda _, dtype, **__: translate(lambda t, f, r: torch.where(f > r, t / 3, t), dtype)
    )
    theta, forget, reference = arrays((100,))
    sweep = Sweep(rule=halve, who="a rule", fused=Fused(halve, who="a rule"))
    monkeypatch.setattr(fused_run, "_compared", {})
    with pytest.warns(UnlearnKitWarning, match="gives other bits than torch"):
        edited = sweep.copy(theta, Averaged(total=forget), Averaged(total=reference))
    assert torch.equal(edited, halve(theta, forget, reference))
