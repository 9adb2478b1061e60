"""Errors of broken laws: a message with a counterexample that can be pasted and run."""

import os
import re
import subprocess
import sys

import attrs
import pytest
import torch
from hypothesis import strategies as st
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import ConfigurationError, DiagonalFisher, ElementwiseUnlearner, UnlearnerTraits, UnsupportedModelError
from unlearnkit.testing import (
    Law,
    LawError,
    RuleInputs,
    check_estimator,
    check_metric,
    check_unlearner,
    fail,
    holds,
    laws_for,
)


def below(limit):
    return Law(
        name="below",
        sentence="The number is small.",
        cases=lambda _: st.integers(0, 1000),
        holds=lambda _, x: holds(x < limit, f"saw {x}"),
        promise="small",
    )


class Doubles(ElementwiseUnlearner):
    name = "doubles"
    traits = UnlearnerTraits(non_amplifying=True)

    def rule(self, theta, forget, reference):
        return torch.where(forget > reference, theta.clamp(-1, 1) * 2, theta)


def test_message_has_sentence_observation_counterexample_and_advice():
    with pytest.raises(LawError) as caught:
        below(10).check(object())
    message = str(caught.value)
    assert "the law 'below' is broken by object: The number is small." in message
    assert "Seen: saw 10" in message
    assert "case = 10" in message
    assert "Not meant as a promise? Write small=False in the traits of object." in message


def test_universal_law_cannot_be_waived():
    with pytest.raises(LawError, match="no trait lifts it"):
        attrs.evolve(below(10), promise="", waiver="").check(object())


def test_the_counterexample_is_the_smallest_and_the_same_on_every_run():
    texts = set()
    for _ in range(2):
        with pytest.raises(LawError) as caught:
            laws_of(Doubles(), "no-amplification").check(Doubles())
        texts.add(str(caught.value))
    (text,) = texts
    assert "forget = torch.tensor([1.0], dtype=torch.float32)" in text
    assert "reference = torch.tensor([0.0], dtype=torch.float32)" in text


SCRIPT = """
import torch
from unlearnkit import ElementwiseUnlearner, UnlearnerTraits
from unlearnkit.testing import LawError, broken_laws

class Doubles(ElementwiseUnlearner):
    name = "doubles"
    traits = UnlearnerTraits(non_amplifying=True, odd=True, idempotent=True)
    def rule(self, theta, forget, reference):
        return torch.where(forget > reference, theta.clamp(-1, 1) * 2, theta)

for name, error in broken_laws(Doubles(), examples=30).items():
    print(name, error)
"""


@pytest.mark.slow  # two processes import torch
def test_the_failures_are_the_same_in_every_process():
    """Independent of the hash seed, the random state and the folder."""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            timeout=300,
        ).stdout
        for seed in ("1", "2")
    ]
    assert "no-amplification the law 'no-amplification' is broken by Doubles" in outputs[0]
    assert "idempotent the law 'idempotent' is broken by Doubles" in outputs[0]
    assert outputs[0] == outputs[1]


def laws_of(subject, name):
    return next(law for law in laws_for(subject) if law.name == name)


def test_the_counterexample_runs_when_pasted(monkeypatch):
    strict = SelectiveSynapticDampening(alpha=0.5, lam=1.0, epsilon=1e-8)
    monkeypatch.setattr(SelectiveSynapticDampening, "promises", lambda self: self.traits)
    with pytest.raises(LawError) as caught:
        laws_of(strict, "scale-free").check(strict)
    block = re.search(r"run:\n\n(.*?)\n\n", str(caught.value), re.DOTALL)[1]
    script = "\n".join(line.removeprefix("    ") for line in block.splitlines())
    assert "from unlearnkit_methods.ssd import SelectiveSynapticDampening" in script
    with pytest.raises(AssertionError, match="importances times"):
        exec(script, {})


def test_every_law_of_a_shipped_object_has_a_script_that_runs():
    for subject in (SelectiveSynapticDampening(alpha=float("inf")), DiagonalFisher()):
        for law in laws_for(subject):
            cases = []
            attrs.evolve(law, holds=lambda _, case, kept=cases: kept.append(case)).check(subject, examples=1)
            exec(law.reproduction(subject, cases[0]), {})


def test_an_unexpected_error_is_named_and_chained():
    def body(_, x):
        raise ZeroDivisionError("oh")

    with pytest.raises(LawError, match="Seen: ZeroDivisionError: oh") as caught:
        Law(name="x", sentence="X.", holds=body).check(1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_subject_that_refuses_every_model_breaks_the_law():
    def refuse(subject, case):
        raise UnsupportedModelError("the losses have no gradient")

    with pytest.raises(LawError, match="Seen: UnsupportedModelError: the losses have no gradient"):
        Law(name="any", sentence="Any.", holds=refuse, cases=lambda _: st.integers(0, 100)).check(object())


def test_flaky_failure_is_reported():
    calls = []

    def body(_, x):
        calls.append(x)
        if len(calls) == 7:
            fail("the seventh")

    with pytest.raises(LawError, match=r"the seventh \(not every time\)"):
        Law(name="x", sentence="X.", cases=lambda _: st.integers(), holds=body).check(1)


def test_a_strategy_that_cannot_draw_is_an_error_of_its_own():
    law = Law(name="x", sentence="X.", cases=lambda _: st.integers().filter(lambda x: x != x), holds=fail)
    with pytest.raises(Exception, match="Unable to satisfy"):
        law.check(1)


def test_the_random_state_of_the_caller_is_left_alone():
    before = torch.get_rng_state()
    Law(name="x", sentence="X.", holds=lambda *_: torch.rand(1)).check(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_class_adds_and_replaces_laws_and_its_children_inherit_them():
    class Parent(Doubles):
        traits = UnlearnerTraits()
        laws = (below(10), attrs.evolve(below(2000), name="sign"))

    class Child(Parent):
        laws = (attrs.evolve(below(2000), name="child"),)

    names = [law.name for law in laws_for(Child())]
    assert {"below", "sign", "child", "runs", "kind"} <= set(names)
    assert len(names) == len(set(names))
    assert laws_of(Child(), "sign").sentence == "The number is small."
    with pytest.raises(LawError, match="'below'"):
        laws_of(Child(), "below").check(Child())


def test_option_can_withdraw_a_promise():
    assert "scale-free" in {law.name for law in laws_for(SelectiveSynapticDampening())}
    assert "scale-free" not in {law.name for law in laws_for(SelectiveSynapticDampening(epsilon=1e-8))}


def test_check_functions_report_every_broken_law():
    class Worse(Doubles):
        traits = UnlearnerTraits(non_amplifying=True, idempotent=True)

    with pytest.raises(LawError) as caught:
        check_unlearner(Worse(), examples=20)
    assert "'no-amplification'" in str(caught.value)
    assert "'idempotent'" in str(caught.value)


@pytest.mark.parametrize(
    ("check", "subject"),
    [
        (check_unlearner, Doubles),
        (check_unlearner, DiagonalFisher()),
        (check_estimator, Doubles()),
        (check_metric, 3),
    ],
)
def test_the_check_functions_refuse_the_wrong_kind(check, subject):
    with pytest.raises(ConfigurationError, match="expected an object of a subclass of"):
        check(subject)


def test_rule_inputs_give_zeros_to_a_method_that_needs_no_reference():
    class NoReference(Doubles):
        needs = frozenset()

    one = torch.ones(2)
    case = RuleInputs(theta=one, forget=one, reference=one)
    assert case.arguments(NoReference())[2].tolist() == [0.0, 0.0]
    assert case.arguments(Doubles())[2].tolist() == [1.0, 1.0]
