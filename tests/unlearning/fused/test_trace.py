"""What a rule may do to be compiled, and that whatever else it does is seen."""

import math
import random

import numpy as np
import pytest
import torch

from unlearnkit.unlearning.fused.c_plus_plus import answers, asked_about, rule
from unlearnkit.unlearning.fused.operations import Question
from unlearnkit.unlearning.fused.trace import Step, translate
from unlearnkit.unlearning.fused.untranslatable import Untranslatable


def test_by_hand():
    program = translate(lambda t, f, r: torch.where(f > 3 * r, t / 2, t), torch.float64)
    assert program.steps == (
        Step("v0", "double", "reference * double_(number0)"),
        Step("v1", "bool", "forget > v0"),
        Step("v2", "double", "ratio_to_constant(theta, double_(number1))"),
        Step("v3", "double", "choose(v1, v2, theta)"),
    )
    assert program.result == "v3"
    assert program.numbers == (3.0, 2.0)


def test_in_c_plus_plus():
    program = translate(lambda t, f, r: torch.maximum(t / f, 3 * r), torch.float32)
    assert rule(program) == (
        "const double number0 = number[0]; const float v0 = ratio(theta, forget); "
        "const float v1 = reference * float_(number0); const float v2 = larger(v0, v1); odd |= tie(v0, v1); return v2;"
    )


def test_what_is_asked_of_torch_cuts_the_program():
    program = translate(lambda t, f, r: torch.where(f > 2, t * torch.exp(-(3 * torch.log(r))), t), torch.float32)
    assert [step.name for step in program.steps if step.question] == ["v1", "v4"]
    assert [step.question for step in program.steps if step.question] == [Question("log"), Question("exp")]
    assert asked_about(program, 1) == "return reference;"
    assert asked_about(program, 4) == (
        "const double number1 = number[1]; const float v1 = answers.v1[i]; const float v2 = v1 * float_(number1); "
        "const float v3 = negative(v2); return v3;"
    )
    assert "const float v1 = answers.v1[i]; " in rule(program)
    assert "const float v4 = answers.v4[i]; const float v5 = theta * v4;" in rule(program)
    assert answers(program).startswith("const float* v1; const float* v4; Answers(")


@pytest.mark.parametrize("power", [lambda t: t**0.5, lambda t: t.pow(0.5), lambda t: torch.pow(t, 0.5)])
def test_a_power_other_than_2_is_asked_of_torch(power):
    assert translate(lambda t, _, __: power(t), torch.float32).steps[0].question == Question("pow", (0.5,))


def test_another_option_is_the_same_program_with_other_numbers():
    one, other = (translate(lambda t, f, _, a=a: t * (f > a), torch.float32) for a in (1.0, math.inf))
    assert one.steps == other.steps
    assert (one.numbers, other.numbers) == ((1.0,), (math.inf,))


def test_a_rule_that_changes_nothing_returns_its_argument():
    program = translate(lambda t, _, __: t, torch.float32)
    assert (program.steps, program.result) == ((), "theta")


def test_it_may_ask_for_what_is_the_same_everywhere():
    def rule(t, f, _):
        assert t.is_floating_point()
        assert f.device.type == "cpu"
        return t.clamp(max=torch.finfo(t.dtype).max)

    assert translate(rule, torch.float32).numbers == (torch.finfo(torch.float32).max,)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda t, f, r: t if (f > r).any() else f, "any"),
        (lambda t, f, _: t if f[0] > 1 else f, "__getitem__"),
        (lambda t, _, __: t * float(t.numpy().max()), "numpy"),
        (lambda t, _, __: t * np.asarray(t).max(), "__array__"),
        (lambda t, _, __: t * t.tolist()[0], "tolist"),
        (lambda t, f, _: t if bool(f.sum()) else f, "sum"),
        (lambda t, _, __: t * t.shape[0], "shape"),
        (lambda t, _, __: t * t.dim(), "dim"),
        (lambda t, _, __: t * len(t), "len"),
        (lambda t, _, __: t * t.numel(), "numel"),
        (lambda t, _, __: t.cosh(), "cosh"),
        (lambda t, _, __: t.exp_(), "exp_"),
        (lambda t, _, __: t.mul_(2), "mul_"),
        (lambda t, _, __: t.data.mul_(2), "data"),
        (lambda t, _, __: torch.add(t, t, alpha=2), "arguments"),
        (lambda t, f, _: torch.add(t, t, out=f), "add is not"),
        (lambda t, f, _: torch.div(t, f, rounding_mode="floor"), "floor"),
        (lambda t, f, _: t**f, "power that depends"),
        (lambda t, _, __: 2**t, "__rpow__"),
        (lambda t, f, _: t.clamp(max=f), "bound"),
        (lambda t, _, __: t.double(), "like its arguments"),
        (lambda t, f, _: t > f, "like its arguments"),
        (lambda t, _, __: t.half().float(), "half"),
        (lambda t, _, __: t + torch.ones(3), "none of the arguments"),
        (lambda t, _, __: t + torch.rand_like(t), "rand_like"),
        (lambda t, _, __: t + torch.ones(2, 1), "number for each"),
        (lambda t, _, __: t.to("meta"), "number for each"),
        (lambda t, _, __: t.float().expand(2, 3), "expand"),
        (lambda t, _, __: t.view(torch.int32), "view"),
        (lambda t, _, __: t * True, "True"),
        (lambda t, _, __: t * 1e300, "1e"),
        (lambda t, _, __: t * (2**53 + 1), "9007"),
        (lambda t, _, __: t * math.nan, "not a number"),
        (lambda t, _, __: torch.where(t, t, t), "fails|comparison"),
        (lambda _, __, ___: torch.ones(3), "made of them"),
        (lambda _, __, ___: None, "made of them"),
        (lambda _, __, ___: 1 / 0, "it fails: ZeroDivisionError"),
        (lambda t, _, __: torch.stack([t, t])[0], "stack"),
        (lambda t, f, _: t * torch.stack([t, f]).sum(), "stack"),
        (lambda t, f, _: t * max(t, f, key=torch.sum), "sum"),
        (lambda t, _, __: torch.nn.functional.relu(t), "relu"),
        (lambda t, _, __: t * sum(x for x in t), "dim|iter|unbind"),
        (lambda t, _, __: torch.ops.aten.exp(t), "exp"),
    ],
)
def test_refused(rule, said):
    with pytest.raises(Untranslatable, match=said):
        translate(rule, torch.float32)


def test_the_rule_runs_once_outside_of_autograd_and_leaves_nothing_behind():
    seen = []

    def rule(t, _, __):
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return t * 2

    before = torch.get_rng_state(), random.getstate()
    with torch.inference_mode():
        translate(rule, torch.float32)
    assert seen == [(False, False)]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert torch.ones(2).exp().shape == (2,)  # nobody watches any more
