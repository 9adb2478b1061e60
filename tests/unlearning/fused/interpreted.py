"""Tests that `test_device` runs in Triton's interpreter: what a GPU would do, on a CPU, a block at a time.

Most are those of the C++: tensors of a CPU are edited by Triton there. Batches are of 8 KiB and blocks of 2,048
weights, so that a small parameter has several of each.
"""

from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch

from tests.unlearning.fused import test_fused, test_operations
from tests.unlearning.fused.test_fused import arrays, check, halve, small_steps, sweeps
from tests.unlearning.fused.test_operations import NUMBERS, TRUTHS, edited, finite, special
from unlearnkit import ConfigurationError
from unlearnkit.models.parameters import bits
from unlearnkit.models.undo_log import UndoLog
from unlearnkit.unlearning.apply_rule import Sweep, keeper
from unlearnkit.unlearning.fused import device_kernel
from unlearnkit.unlearning.fused import run as fused_run
from unlearnkit.unlearning.fused.arrays import Arrays
from unlearnkit.unlearning.fused.device_kernel import DeviceKernel
from unlearnkit.unlearning.fused.device_passage import DevicePassage, Overwritten
from unlearnkit.unlearning.fused.device_source import BLOCK, source
from unlearnkit.unlearning.fused.run import Fused
from unlearnkit.unlearning.fused.trace import translate
from unlearnkit.unlearning.operands import Averaged, RuleOperands

BORROWED = [
    "test_every_method_that_ships",
    "test_half_precision_rounds_as_torch_does",
    "test_means_are_divided_like_those_of_torch",
    "test_a_rule_without_reference_sees_zeros",
    "test_arrays_that_lie_alike_in_any_order",
    "test_arrays_that_lie_differently_are_left_to_torch",
    "test_an_infinite_result_undoes_the_compiled_edit_and_torch_does_it",
    "test_nan_made_of_finite_weights_names_the_method_and_leaves_the_model",
    "test_of_many_parameters_only_the_one_with_an_infinite_result_is_left_to_torch",
    "test_undo_since_a_mark_leaves_what_was_before",
    "test_autograd_hears_of_the_edit",
    "test_inside_inference_mode",
    "test_a_rule_that_cannot_be_compiled_is_left_to_torch_or_refused_when_compiling_is_asked_for",
    "test_what_torch_computes_is_compared_kept_and_written_by_compiled_code",
    "test_a_piece_that_is_not_finite_is_blamed_as_without_compiled_code",
    "test_code_that_gives_other_bits_than_torch_is_not_used",
    "test_the_smaller_and_the_larger",
    "test_two_zeros_of_different_sign_are_left_to_torch",
]
for name in BORROWED:
    globals()[name] = getattr(test_fused, name, None) or getattr(test_operations, name)
FIXTURES = (small_steps,)  # of what is borrowed
CLAMPS = {"clip", "clamp_max"}  # at zero: which of two zeros is left to torch on a device


@pytest.fixture(autouse=True)
def in_small_batches(monkeypatch):
    monkeypatch.setattr("unlearnkit.unlearning.fused.device_passage._BATCH", 1 << 13)
    with np.errstate(all="ignore"):  # the interpreter computes with numpy
        yield


def test_the_tests_of_the_c_plus_plus_meet_triton():
    journal = UndoLog()
    theta, *totals = arrays((5000,))
    sweeps(halve)[0].write(theta, *(Averaged(total=t) for t in totals), journal=journal)
    assert [type(entry) for entry in journal._entries] == [Overwritten] * 3


# The bits


def chosen(group):
    """One rule of many operations, of which F_f says which."""

    def rule(t, f, r):
        result = torch.zeros_like(t)
        for number, operation in enumerate(group.values()):
            made = operation(t, r)
            truth = group.keys() <= TRUTHS.keys()
            result = torch.where(f == number, torch.where(made, t, 5.0) if truth else finite(made), result)
        return result

    return rule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", ["numbers", "truths", "clamps"])
def test_every_operation(which, dtype):
    groups = {
        "numbers": {k: v for k, v in NUMBERS.items() if k not in CLAMPS},
        "truths": TRUTHS,
        "clamps": {k: v for k, v in NUMBERS.items() if k in CLAMPS},
    }
    group, values = groups[which], special(dtype)
    if which == "clamps":
        values = values[values != 0]
    pairs = torch.cartesian_prod(values, values[::5])  # of either sign
    theta, reference = pairs.repeat(len(group), 1).t().contiguous()
    forget = torch.arange(len(group), dtype=dtype).repeat_interleave(len(pairs))
    rule = chosen(group)
    got, want = edited(rule, dtype, theta, forget, reference), rule(theta, forget, reference)
    assert {list(group)[int(i)] for i in forget[bits(got) != bits(want)]} == set()


@pytest.mark.parametrize("size", [1, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 33])
def test_every_size(size):
    check(halve, *arrays((size,)))


@pytest.mark.parametrize(("dtype", "integer"), [(torch.float32, torch.int32), (torch.bfloat16, torch.int16)])
def test_any_bits_subnormals_and_zeros_included(dtype, integer):
    info, generator = torch.iinfo(integer), torch.Generator().manual_seed(0)
    theta = torch.randint(info.min, info.max, (4999,), generator=generator, dtype=integer).view(dtype)
    theta = torch.cat([theta[torch.isfinite(theta)], special(torch.float32).to(dtype), torch.tensor([-0.0, 0.0])])
    theta = theta[torch.isfinite(theta)]
    _, *totals = arrays(theta.shape)
    check(halve, theta, *totals)
    check(lambda t, f, _: torch.where(f > 1, -t, t), theta, *totals)


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_what_is_not_finite_is_left_to_torch_changed_or_not(bad):
    theta, *totals = arrays((2 * BLOCK + 5,))
    theta[-1] = bad
    compiled, plain = sweeps(lambda t, *_: t)
    trio = RuleOperands(theta, *(Averaged(total=t) for t in totals))
    assert compiled.fused.run([trio], plainly=plain.copy) == [None]


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_zero_at_a_bound_of_zero_is_left_to_torch_unless_they_are_the_same(zero):
    def rule(t, _, __):
        return t.clamp(min=zero) + 1

    theta = torch.tensor([-0.0, 1.0])
    [count] = Fused(rule, who="x").run(
        [RuleOperands(theta, Averaged(total=theta), None)], plainly=lambda t, *_: rule(t, 0, 0)
    )
    assert count == (None if str(zero) == "0.0" else 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_cuda_a_constant_divides_as_torch_does_there(dtype):
    """Multiply by one over the constant: the bits of CUDA's torch, worked out by this processor's."""

    def over(x, constant):
        return x * (torch.ones((), dtype=dtype) / torch.tensor(constant, dtype=dtype))

    theta, forget, reference = arrays((3000,), dtype=dtype, totals=dtype)
    f, r = over(forget, 97), over(reference, 49_500)
    want = torch.where(f > r, over(theta, 3), theta / f)
    arrays_ = Arrays.of(RuleOperands(theta, Averaged(total=forget, count=97), Averaged(total=reference, count=49_500)))
    program = translate(lambda t, f, r: torch.where(f > r, t / 3, t / f), dtype)
    text = source(program, arrays_.dtypes, dtype, reciprocals=True)
    kernel = device_kernel._working(text, arrays_.dtypes, theta.device, len(program.numbers))
    assert DevicePassage(kernel=kernel, numbers=program.numbers).run([arrays_]) != [None]
    assert torch.equal(bits(theta), bits(want))
    assert not torch.equal(want, torch.where(f > r, theta / 3, theta / f))


def test_a_rule_that_asks_torch_is_left_to_torch_here():
    theta, *totals = arrays((300,))
    args, journal = [Averaged(total=t) for t in totals], UndoLog()
    with pytest.raises(ConfigurationError, match=r"only on a CPU is torch asked for torch\.exp alone"):
        sweeps(lambda t, f, _: t * torch.exp(-f))[0].count(theta, *args)
    kept = Sweep(rule=lambda t, f, _: t * torch.exp(-f), who="x", keeper=keeper("x"))
    want = kept.copy(theta, *args)
    assert kept.write(theta, *args, journal=journal) == 300
    assert torch.equal(theta, want)
    assert [type(entry) for entry in journal._entries] == [Overwritten]


# The journal


def test_what_is_kept_is_a_bit_for_each_weight_of_a_block_and_the_values_that_changed():
    theta = torch.ones(2 * BLOCK + 16)
    forget = torch.zeros_like(theta)
    forget[::1000] = 1  # 0, 1000, 2000, 3000 and 4000: in the first two batches of three
    journal = check(halve, theta, forget, torch.zeros_like(theta))
    assert journal.nbytes == 2 * (BLOCK // 8 + 8) + 5 * 4
    assert check(halve, theta, torch.zeros_like(theta), forget).nbytes == 0


@pytest.mark.parametrize("when", ["before", "in the middle", "after"])
@pytest.mark.parametrize("interrupted", [0, 1, 4])
def test_an_interrupt_at_a_start_of_the_kernel_is_undone(monkeypatch, interrupted, when):
    theta, *totals = arrays((6 * BLOCK,))
    args, before, journal, calls = [Averaged(total=t) for t in totals], theta.clone(), UndoLog(), []
    sweep, edit = sweeps(halve)[0], DeviceKernel.edit
    sweep.count(theta, *args)  # compared with torch before

    def interrupting(self, given, **options):
        calls.append(given)
        share = {"before": 0, "in the middle": 1024, "after": BLOCK}[when] if len(calls) > interrupted else BLOCK
        if share:
            edit(self, tuple(t[:share] for t in given), **options)
        if len(calls) > interrupted:
            raise KeyboardInterrupt

    monkeypatch.setattr(DeviceKernel, "edit", interrupting)
    with pytest.raises(KeyboardInterrupt):
        sweep.write(theta, *args, journal=journal)
    assert torch.equal(theta, before) == (interrupted == 0 and when == "before")
    for _ in range(2):
        journal.undo()
        assert torch.equal(bits(theta), bits(before))


def test_an_interrupt_while_what_was_kept_is_put_together_is_undone(monkeypatch):
    theta, *totals = arrays((6 * BLOCK,))
    args, before, journal, calls = [Averaged(total=t) for t in totals], theta.clone(), UndoLog(), []

    def interrupting(*args, **changes):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attrs.evolve(*args, **changes)

    monkeypatch.setattr("unlearnkit.unlearning.fused.device_passage.attrs", SimpleNamespace(evolve=interrupting))
    with pytest.raises(KeyboardInterrupt):
        sweeps(halve)[0].write(theta, *args, journal=journal)
    assert not torch.equal(theta, before)
    journal.undo()
    assert torch.equal(bits(theta), bits(before))


def test_autograd_hears_of_the_undoing():
    theta, *totals = arrays((100,))
    journal = check(halve, theta, *totals)
    before = theta._version
    journal.undo()
    assert theta._version > before


def test_the_parameter_that_torch_must_do_is_forgotten():
    theta, forget, reference = arrays((4 * BLOCK,))
    theta[3 * BLOCK] = torch.inf
    journal, args = UndoLog(), (Averaged(total=forget), Averaged(total=reference))
    compiled, plain = sweeps(halve)
    assert compiled.fused.run([RuleOperands(theta, *args)], plainly=plain.copy, journal=journal) == [None]
    assert journal.nbytes == 0


# When


def test_a_large_model_is_edited_by_triton(monkeypatch):
    calls = []
    made = fused_run.device_kernel
    monkeypatch.setattr(fused_run, "device_kernel", lambda *args: calls.append(args) or made(*args))
    theta, *totals = arrays((100,))
    sweeps(halve)[0].count(theta, *(Averaged(total=t) for t in totals))
    assert len(calls) == 1
