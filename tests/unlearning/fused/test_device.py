"""The edit in Triton: its numbers in the interpreter, what is compiled for a GPU, and what happens where it fails.

The interpreter proves the numbers of the kernel's operations one by one, with numpy's rounding. That a GPU rounds so is
not proved by it: what is compiled for one is read here instead, instruction by instruction. Only tests marked ``gpu``
run it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, final

import attrs
import pytest
import torch
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from tests.unlearning.fused.test_fused import CASES, arrays, check, halve
from unlearnkit import ConfigurationError, UnlearnKitWarning
from unlearnkit.unlearning.apply_rule import Sweep
from unlearnkit.unlearning.fused import run as fused_run
from unlearnkit.unlearning.fused.device_kernel import DeviceKernel, _try_it
from unlearnkit.unlearning.fused.device_passage import cut
from unlearnkit.unlearning.fused.device_source import load_source, source
from unlearnkit.unlearning.fused.kernel import Dtypes
from unlearnkit.unlearning.fused.run import Fused
from unlearnkit.unlearning.fused.trace import translate
from unlearnkit.unlearning.fused.untranslatable import Untranslatable
from unlearnkit.unlearning.operands import Averaged, RuleOperands

ROOT = Path(__file__).parents[3]
RULES = {
    "ssd": SelectiveSynapticDampening(alpha=1.0, epsilon=1e-8).rule,
    "products and sums": lambda t, f, r: t * f + r * 3 - t / 7,
    "choices": lambda t, f, r: torch.maximum(t, -r).abs().masked_fill((f > 0) & ~torch.isnan(r / f), 2.0),
}


def test_in_the_interpreter(tmp_path):
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "UNLEARNKIT_CACHE": str(tmp_path)}
    options = ["-q", "-n0", "-p", "no:cacheprovider", "--durations=12"]
    command = [sys.executable, "-m", "pytest", *options, "tests/unlearning/fused/interpreted.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr


# What is compiled, read and not run


@final
class Absent:
    """A driver of a device that is not there, for which Triton compiles."""

    def __init__(self, target):
        self.get_current_target = lambda: target
        self.get_current_device = self.get_current_stream = lambda *_: 0


@final
@attrs.frozen
class Compiled:
    """What stands for a kernel of Triton, and compiles it for its arguments instead of starting it."""

    kernel: Any
    ptx: list[str]

    def __getitem__(self, grid):
        def start(*args, **options):
            self.ptx.append(self.kernel.warmup(*args, grid=grid, **options).asm["ptx"])

        return start


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """What is tried first on a device, in the language of GPUs: the edit, its undoing, and both for a single weight."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path))

    def compiled(rule, dtypes, *, capability=90):
        monkeypatch.setattr(driver, "_active", Absent(GPUTarget("cuda", capability, 32)))
        load_source.cache_clear()
        computing = torch.float64 if torch.float64 in {dtypes.weight, dtypes.forget} else torch.float32
        program, ptx = translate(rule, computing), []
        names = load_source(source(program, dtypes, computing, reciprocals=True))
        kernel = DeviceKernel(Compiled(names["one_pass"], ptx), Compiled(names["put_back"], ptx))
        _try_it(kernel, dtypes, torch.device("cpu"), len(program.numbers))
        return ptx

    return compiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_what_is_compiled_for_a_gpu_rounds_every_operation_to_the_nearest(compiled, rule, dtype):
    ptx = " ".join(compiled(rule, Dtypes(dtype, dtype, dtype)))
    kinds = set(re.findall(r"\b((?:add|sub|mul|div|fma|mad|rcp|sqrt)\S*\.f(?:32|64))\s", ptx))
    assert kinds <= {f"{name}.rn.f{size}" for name in ("add", "sub", "mul", "div") for size in (32, 64)}
    assert "ftz" not in ptx
    assert "approx" not in ptx


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_arrays_are_read_and_written_sixteen_bytes_at_a_time(compiled, weight):
    ptx = compiled(RULES["ssd"], Dtypes(weight, torch.float32, torch.float32))[0]
    assert {"ld.global.v4.b32"} == set(re.findall(r"ld\.global\.v\S+", ptx))
    assert "st.global.v4.b32" in ptx


@pytest.mark.parametrize("dtypes", [Dtypes(torch.float16, torch.float64), Dtypes(torch.bfloat16, torch.float32)])
def test_other_dtypes_and_devices_compile(compiled, dtypes):
    assert ["sm_75" in ptx for ptx in compiled(RULES["ssd"], dtypes, capability=75)] == [True] * 4


# What is watched


def test_a_rule_is_watched_where_it_is_going_to_run():
    def by_place(t, f, _):
        return t * 2 if t.device.type == "cpu" else t + f

    here, there = (translate(by_place, torch.float32, device=torch.device(d)) for d in ("cpu", "meta"))
    assert [step.text for program in (here, there) for step in program.steps] == [
        "theta * float_(number0)",
        "theta + forget",
    ]
    with pytest.raises(Untranslatable, match="none of the arguments"):
        translate(lambda t, _, __: t * torch.tensor(2.0, device=t.device), torch.float32, device=torch.device("meta"))


# Batches


@pytest.mark.parametrize(("lengths", "limit"), [([1], 16), ([40, 5, 100], 64), ([3] * 50, 20), ([1000, 17, 16], 100)])
def test_every_weight_is_in_one_segment(lengths, limit):
    batches = list(cut(lengths, limit))
    segments = [segment for batch in batches for segment in batch]
    assert [sum(e - b for n, b, e in segments if n == number) for number in range(len(lengths))] == lengths
    for n, begin, end in segments:
        assert begin % 16 == 0
        assert (end - begin) % 16 == 0 or end == lengths[n]
    assert all(0 < sum(e - b for _, b, e in batch) <= limit for batch in batches)
    assert len({n for n, *_ in segments}) == len(lengths)


# Where it fails


def left_to_torch(who, match):
    theta, forget, reference = arrays((100,))
    args = Averaged(total=forget), Averaged(total=reference)
    with pytest.warns(UnlearnKitWarning, match=f"{who} is left to torch: {match}"):
        edited = Sweep(rule=halve, who=who, fused=Fused(halve, who=who)).copy(theta, *args)
    assert torch.equal(edited, halve(theta, forget, reference))
    with pytest.raises(ConfigurationError, match=match):
        Sweep(rule=halve, who=who, fused=Fused(halve, who=who, required=True)).copy(theta, *args)


@pytest.fixture
def for_a_device(monkeypatch, tmp_path):
    monkeypatch.setattr(fused_run, "on_device", lambda _: True)
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path))
    load_source.cache_clear()


@pytest.mark.usefixtures("for_a_device")
def test_where_triton_fails_torch_does_it_and_says_so():
    pytest.importorskip("triton")
    left_to_torch("a rule for a device that is not there", "Triton failed")


@pytest.mark.usefixtures("for_a_device")
def test_without_triton_torch_does_it_and_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    left_to_torch("a rule without Triton", "compiled kernels for CUDA need Triton, saw none")


@pytest.mark.usefixtures("for_a_device")
def test_without_a_folder_torch_does_it_and_says_so(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path / "file"))
    left_to_torch("a rule without a folder", "cannot keep a compiled kernel")


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "dtype", "totals"), CASES, ids=lambda x: getattr(x, "name", str(x)))
@pytest.mark.parametrize("batch", [1 << 13, 1 << 28])
def test_every_method_on_a_gpu(monkeypatch, method, dtype, totals, batch):
    monkeypatch.setattr("unlearnkit.unlearning.fused.device_passage._BATCH", batch)
    check(method.rule, *(t.cuda() for t in arrays((100_003,), dtype=dtype, totals=totals)))


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("count", [None, 97])
def test_every_rule_on_a_gpu(rule, count):
    check(rule, *(t.cuda() for t in arrays((1_000_000,))), counts=(count, 49_500))


@pytest.mark.gpu
def test_more_weights_than_an_integer_of_32_bits_counts_on_a_gpu():
    theta = torch.ones(2**31 + 40, dtype=torch.bfloat16, device="cuda")
    forget = Averaged(total=torch.zeros(1, device="cuda").expand(theta.shape).contiguous())
    [count] = Fused(lambda t, f, _: t + (f > 0) * 2, who="x", required=True).run(
        [RuleOperands(theta, forget, None)], plainly=lambda t, f, _: t + (f.total > 0) * 2
    )
    assert count == 0
