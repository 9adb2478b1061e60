"""`parametrize_with_checks`: one test per object and law, with ids that are the same in every process."""

# ruff: noqa: ARG002 - the methods here have the signatures of the contract, and need less

import importlib
import subprocess
import sys

import pytest
from unlearnkit_methods.prune import Prune
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import ConfigurationError, Unlearner
from unlearnkit.testing import broken_laws, cases, laws_for, parametrize_with_checks

SUBJECTS = [Prune(), SelectiveSynapticDampening(alpha=float("inf")), Prune()]


def params(mark):
    return mark.args[1]


def test_there_is_one_test_per_object_and_law():
    made = params(parametrize_with_checks(SUBJECTS))
    assert [(p.values[0], p.values[1].name) for p in made] == [(s, law.name) for s in SUBJECTS for law in laws_for(s)]


def test_ids_are_readable_and_unique():
    ids = [p.id for p in params(parametrize_with_checks(SUBJECTS))]
    assert len(set(ids)) == len(ids)
    assert "SelectiveSynapticDampening(alpha=inf,lam=1.0,fraction=None,epsilon=0.0)-locality" in ids
    assert {"Prune(tau=0.0)-locality", "Prune(tau=0.0)-locality-2"} <= set(ids)


def test_ids_hold_no_addresses():
    class Plain(type(Prune()).__mro__[1]):
        name = "plain"

        def rule(self, theta, forget, reference):
            return theta

    assert not [p.id for p in params(parametrize_with_checks([Plain()])) if "0x" in p.id]


def test_expected_failures_become_strict_xfails():
    made = params(parametrize_with_checks([Prune()], expected_failures={"locality": "known"}))
    (marked,) = [p for p in made if p.marks]
    assert marked.values[1].name == "locality"
    assert marked.marks[0].kwargs == {"reason": "known", "strict": True}


def test_expected_failures_may_depend_on_the_object():
    def expected(subject):
        return {"scale-free": "ε"} if isinstance(subject, SelectiveSynapticDampening) else {}

    marked = [p for p in params(parametrize_with_checks(SUBJECTS, expected_failures=expected)) if p.marks]
    assert len(marked) == 1


def test_a_class_that_lacks_something_is_named():
    class Unfinished(Unlearner):
        name = "unfinished"

        def apply(self, model, inputs):
            pass

    for check in (broken_laws, lambda subject: parametrize_with_checks([subject])):
        with pytest.raises(ConfigurationError, match=r"Unfinished.*needs"):
            check(Unfinished())


def test_an_expected_failure_of_no_law_is_refused():
    with pytest.raises(ConfigurationError, match=r"saw \['locallity'\]"):
        parametrize_with_checks(SUBJECTS, expected_failures={"locallity": "a slip"})


@pytest.mark.parametrize("subject", [Prune, 3])
def test_object_without_laws_is_refused(subject):
    with pytest.raises(ConfigurationError, match="subject 0"):
        parametrize_with_checks([subject])


TESTS = """
import torch
from unlearnkit import ElementwiseUnlearner, UnlearnerTraits
from unlearnkit.testing import parametrize_with_checks

class Doubles(ElementwiseUnlearner):
    name = "doubles"
    traits = UnlearnerTraits(sign_preserving=True, non_amplifying=True)
    def rule(self, theta, forget, reference):
        return torch.where(forget > reference, theta.clamp(-1, 1) * 2, theta)

@parametrize_with_checks([Doubles()], expected_failures={"sign": "it holds after all"})
def test_contract(subject, law):
    if law.promise:
        law.check(subject, examples=30)
"""


@pytest.mark.slow  # three processes import torch
def test_xdist_run_has_the_expected_failures(tmp_path):
    file = tmp_path / "test_doubles.py"
    file.write_text(TESTS)
    command = [sys.executable, "-m", "pytest", str(file), "-q", "-n", "2", "-p", "no:cacheprovider", "-c", "/dev/null"]
    run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "the law 'no-amplification' is broken by Doubles" in run.stdout
    assert "[XPASS(strict)] it holds after all" in run.stdout
    assert "2 failed" in run.stdout


def test_without_hypothesis_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"unlearnkit\[testing\]"):
        importlib.reload(cases)
