"""A class that breaks the contract is named at its first use, in Python as in a plugin."""
# ruff: noqa: ARG002, ARG004 - the signatures are the framework's

from dataclasses import dataclass
from functools import cached_property

import attrs
import pytest
import torch
from torch import nn

from unlearnkit import (
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    ElementwiseUnlearner,
    Importance,
    ImportanceEstimator,
    Metric,
    MismatchError,
    Need,
    Objective,
    Pipeline,
    TrainingUnlearner,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    option,
)
from unlearnkit.plugins.manager import fault_of
from unlearnkit.testing import broken_laws, check_unlearner
from unlearnkit.unlearning import EpochConfig
from unlearnkit.utils.global_state import _STATE


class Rule(ElementwiseUnlearner):
    name = "rule"

    def rule(self, theta, forget, reference):
        return theta


class Plain(Rule):
    def __init__(self, lam):
        self.lam = lam


@dataclass(frozen=True)
class Data(Rule):
    lam: float = 0.5


class Undecorated(TrainingUnlearner):
    name = "undecorated"
    needs = frozenset({Need.RETAIN_DATA})
    gamma: float = option(0.5, doc="not read")

    def passes(self, model, inputs):
        return []


class Nameless(ElementwiseUnlearner):
    def rule(self, theta, forget, reference):
        return theta


class Shouts(Rule):
    name = "Shouts_Loudly"


class Needless(Unlearner):
    name = "needless"

    def apply(self, model, inputs):
        raise AssertionError


class WordsForNeeds(Needless):
    needs = frozenset({"forget"})


class TwoArguments(Rule):
    def rule(self, theta, forget):
        return theta


class ThreeArguments(Needless):
    needs = frozenset()

    def apply(self, model, inputs, seed):
        raise AssertionError


@attrs.frozen(kw_only=True)
class PlainField(Rule):
    lam: float = attrs.field(default=0.5)


@attrs.frozen
class AnnotationOnly(Rule):
    lam: float = 0.5


@attrs.define(slots=False, init=False)
class AnyNames(Rule):
    def __init__(self, **options):
        self.__dict__.update(options)


class TraitsOfWords(Rule):
    traits = frozenset({"local"})


FAULTS = {
    PlainField: r"PlainField: expected options made by option\(\), saw the plain field lam: write `lam: float =",
    AnnotationOnly: r"AnnotationOnly: expected options made by option\(\), saw the plain field lam",
    AnyNames: r"AnyNames: expected options that are attrs fields, saw options, which no record would hold",
    TraitsOfWords: r"TraitsOfWords.traits: expected UnlearnerTraits, saw frozenset\({'local'}\)",
    Plain: r"Plain: expected options that are attrs fields, saw lam, which no record would hold: decorate the class",
    Data: r"Data: expected options that are attrs fields, saw lam, .*attrs.frozen",
    Undecorated: r"Undecorated: expected options that are attrs fields, saw gamma, .*attrs.frozen",
    Nameless: r"Nameless.name: expected lower-case letters, .* saw None",
    Shouts: r"Shouts.name: expected lower-case letters, .* saw 'Shouts_Loudly'",
    Needless: r"Needless.needs: expected a frozenset of Need, saw None",
    WordsForNeeds: r"WordsForNeeds.needs: expected a frozenset of Need, saw frozenset\({'forget'}\)",
    TwoArguments: r"rule: expected the parameters \(self, theta, forget, reference\), saw \(self, theta, forget\)",
    ThreeArguments: r"apply: expected the parameters \(self, model, inputs\), saw \(self, model, inputs, seed\)",
}


@pytest.mark.parametrize("cls", FAULTS, ids=lambda cls: cls.__name__)
def test_a_method_class_is_refused_when_it_is_registered_checked_and_used(cls, record_property):
    record_property("tried", ("classes and objects that break the contract", 1))
    method = cls(0.5) if cls is Plain else cls()
    uses = [
        lambda: method.unlearn(nn.Linear(2, 2), UnlearningInputs()),
        lambda: check_unlearner(method),
        lambda: Pipeline(unlearner=method),
    ]
    for use in uses:
        with pytest.raises(ConfigurationError, match=FAULTS[cls]):
            use()
    with pytest.raises(ConfigurationError, match=FAULTS[cls]):
        raise ConfigurationError(fault_of(cls, Unlearner))


class Shared(Rule):
    lam = 0.5


class NoPromises(Rule):
    def promises(self):
        return {"local": True}


class PromisesNoOption(Rule):
    traits = UnlearnerTraits(monotone={"alpha"})


def with_option_set_afterwards():
    method = Shared()
    method.lam = 0.7
    return method


OBJECTS = {
    r"Shared: expected options that are attrs fields, saw lam, which no record would hold": with_option_set_afterwards,
    r"NoPromises.promises\(\): expected UnlearnerTraits, saw {'local': True}": NoPromises,
    r"PromisesNoOption.traits.monotone: expected names of options, saw alpha": PromisesNoOption,
}


@pytest.mark.parametrize("said", OBJECTS)
def test_an_object_whose_record_would_be_wrong_is_refused_when_it_is_checked_and_used(said, record_property):
    record_property("tried", ("classes and objects that break the contract", 1))
    method = OBJECTS[said]()
    for use in (
        lambda: method.unlearn(nn.Linear(2, 2), UnlearningInputs()),
        lambda: check_unlearner(method),
        lambda: Pipeline(unlearner=method),
    ):
        with pytest.raises(ConfigurationError, match=said):
            use()


def test_private_fields_and_state_are_no_options():
    @attrs.frozen
    class Counts(Needless):
        needs = frozenset()
        _start: int = 0
        steps: int = attrs.field(default=0, init=False)

        @cached_property
        def double(self):
            return 2 * self._start

        def apply(self, model, inputs):
            return self.double and None

    assert fault_of(Counts, Unlearner) == ""
    assert Counts(1).unlearn(nn.Linear(2, 2), UnlearningInputs()).options == {"_start": 1}


def test_what_is_final_must_not_be_overridden():
    class Unlearns(Needless):
        needs = frozenset()

        def unlearn(self, model, inputs):
            return None

    said = "Unlearns.unlearn: is final in Unlearner, must not be overridden"
    assert fault_of(Unlearns, Unlearner).endswith(said)
    with pytest.raises(ConfigurationError, match=said):
        check_unlearner(Unlearns())
    assert "runs" in broken_laws(Unlearns(), examples=2)


@attrs.define
class ChangesItsOption(Needless):
    needs = frozenset()
    lam: float = option(0.5, doc="strength")

    def apply(self, model, inputs):
        self.lam = 0.9


@attrs.frozen
class Returns(Rule):
    _name: str
    _value: object = None

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "_name"):
            return lambda *_: object.__getattribute__(self, "_value")
        return object.__getattribute__(self, name)


RETURNED = {
    r"remarks\(\) must return a tuple of sentences, saw 'careful'": Returns("remarks", "careful"),
    r"remarks_if_unchanged\(\) must return a tuple of sentences, saw None": Returns("remarks_if_unchanged"),
    r"prepare\(\) must return an object of its class, as .* does, saw NoneType": Returns("prepare"),
    r"\(.*ChangesItsOption\) broke the contract .*: lam: an option was changed": ChangesItsOption(),
}


@pytest.mark.parametrize("said", RETURNED)
def test_what_a_method_returns_is_checked(said, record_property):
    record_property("tried", ("classes and objects that break the contract", 1))
    model = nn.Linear(2, 2)
    ones = Importance(totals={name: torch.ones_like(p) for name, p in model.named_parameters()}, count=1)
    with pytest.raises(MismatchError, match=rf"method '\w+':? {said}"):
        RETURNED[said].unlearn(model, UnlearningInputs(forget=ones, reference=ones))


class Trains(TrainingUnlearner):
    name, needs = "trains", frozenset({Need.RETAIN_DATA})

    def passes(self, model, inputs):
        return EpochConfig.epochs(inputs.retain_data, inputs.mean_loss, count=1)


def trains(**members):
    return attrs.frozen(type("Trains", (Trains,), members))()


PASSES = {
    r"expected passes, an iterable of EpochConfig, saw NoneType": lambda *_: None,
    r"pass 1: expected an EpochConfig, saw tuple": lambda *given: [(given[2].retain_data, given[2].mean_loss)],
    r"expected the loss of a batch, a scalar tensor, saw a tensor of shape \(2,\) in epoch": lambda *given: [
        EpochConfig(batches=given[2].retain_data, loss=given[2].objective.losses)
    ],
    r"expected the loss of a batch, a scalar tensor, saw 1.0 in epoch, batch 1": lambda *given: [
        EpochConfig(batches=given[2].retain_data, loss=lambda *_: 1.0)
    ],
}


@pytest.mark.parametrize("said", PASSES)
def test_what_a_method_that_trains_returns_is_checked(said, record_property):
    record_property("tried", ("classes and objects that break the contract", 1))
    batches = [(torch.ones(2, 2), torch.tensor([0, 1]))]
    with pytest.raises(MismatchError, match=said):
        trains(passes=PASSES[said]).unlearn(nn.Linear(2, 2), UnlearningInputs(retain_data=batches))
    with pytest.raises(MismatchError, match=r"'trains': student\(\) must return a model, saw NoneType"):
        trains(student=lambda *_: None).unlearn(nn.Linear(2, 2), UnlearningInputs(retain_data=batches))


@pytest.mark.parametrize(
    "read",
    [
        lambda inputs: inputs.importances()[1],
        lambda inputs: inputs._retain_data[0],
        lambda inputs: attrs.evolve(inputs, reader=None).retain_data[0],
        lambda inputs: attrs.asdict(inputs, recurse=False)["_retain_data"][0],
    ],
    ids=["importances", "private", "reader", "asdict"],
)
def test_what_is_not_declared_is_not_even_there(read, record_property):
    record_property("tried", ("classes and objects that break the contract", 1))

    class Reads(Unlearner):
        name, needs = "reads", frozenset({Need.FORGET_IMPORTANCE})

        def apply(self, model, inputs):
            read(inputs)

    model, batches = nn.Linear(2, 2), [(torch.ones(2, 2), torch.tensor([0, 1]))]
    ones = Importance(totals={name: torch.ones_like(p) for name, p in model.named_parameters()}, count=1)
    with pytest.raises((TypeError, IndexError)):
        Reads().unlearn(model, UnlearningInputs(forget=ones, reference=ones, retain_data=batches))
    assert "runs" in broken_laws(Reads(), examples=2)


def test_remarks_on_an_edit_that_changed_nothing_read_what_is_declared_only():
    class Idle(Unlearner):
        name, needs = "idle", frozenset()

        def apply(self, model, inputs):
            """Change nothing."""

        def remarks_if_unchanged(self, inputs):
            return (str(inputs.retain_data),)

    with pytest.raises(
        ConfigurationError, match=r"'idle' reads inputs.retain_data without declaring it: add Need.RETAIN"
    ):
        Idle().unlearn(nn.Linear(2, 2), UnlearningInputs(retain_data=[(torch.ones(1, 2), torch.tensor([0]))]))


def test_what_a_method_or_an_estimator_sets_for_everybody_is_put_back():
    def spoil():
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_grad_enabled(False)
        torch.backends.cudnn.benchmark = True

    class Spoils(Unlearner):
        name, needs = "spoils", frozenset()

        def apply(self, model, inputs):
            spoil()

    class Measures(ImportanceEstimator):
        name = "measures"

        def estimate_batch(self, model, batch, *, objective):
            spoil()
            return Importance(
                totals={name: torch.ones_like(p.detach()) for name, p in model.named_parameters()}, count=2
            )

    model = nn.Linear(2, 2)
    before = {name: read() for name, (read, _) in _STATE.items()}
    Spoils().unlearn(model, UnlearningInputs())
    assert {name: read() for name, (read, _) in _STATE.items()} == before
    batch = (torch.ones(2, 2), torch.tensor([0, 1]))
    Measures().estimate(model, [batch], objective=CrossEntropy())
    assert {name: read() for name, (read, _) in _STATE.items()} == before


def test_prepare_that_uses_an_undeclared_reference_importance_names_the_need():
    class Prepares(Rule):
        needs = frozenset({Need.FORGET_IMPORTANCE})

        def prepare(self, forget, reference):
            return attrs.evolve(self) if reference.count > 1 else self

    model = nn.Linear(2, 2)
    ones = Importance(totals={name: torch.ones_like(p) for name, p in model.named_parameters()}, count=1)
    with pytest.raises(
        ConfigurationError, match=r"prepare\(\) uses .* without declaring it: add Need.REFERENCE_IMPORTANCE"
    ):
        Prepares().unlearn(model, UnlearningInputs(forget=ones, reference=ones))


def test_options_of_estimators_and_objectives_must_be_in_the_fingerprint():
    class Scaled(DiagonalFisher.__mro__[1]):
        name = "scaled"

        def __init__(self, factor):
            self.factor = factor

        def estimate_batch(self, model, batch, *, objective):
            raise AssertionError

    class Focal(Objective):
        def __init__(self, gamma):
            self.gamma = gamma

        def losses(self, model, batch):
            raise AssertionError

    batch = (torch.ones(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ConfigurationError, match=r"Scaled: expected options that are attrs fields, saw factor"):
        Scaled(2.0).estimate(nn.Linear(2, 2), [batch], objective=Focal(1.0))
    with pytest.raises(ConfigurationError, match=r"Focal: expected an attrs class, saw gamma, which no fingerprint"):
        DiagonalFisher().estimate(nn.Linear(2, 2), [batch], objective=Focal(1.0))
    assert attrs.frozen(type("Named", (Objective,), {"losses": None}))().describe().endswith("Named()")


def test_a_metric_of_other_parameters_is_refused():
    class Odd(Metric):
        name = "odd"

        def measure(self):
            return {}

    assert fault_of(Odd, Metric).endswith("expected the parameters (self, inputs), saw (self)")


def test_methods_and_hooks_with_further_defaults_are_no_fault():
    class More(Rule):
        @staticmethod
        def rule(theta, forget, *rest, scale=1.0):
            return theta

        def prepare(self, *importances, **options):
            return self

    assert fault_of(More, Unlearner) == ""


def test_apply_that_returns_a_model_is_refused():
    class Returns(Unlearner):
        name = "returns"
        needs = frozenset()

        def apply(self, model, inputs):
            return nn.Linear(2, 2)

    with pytest.raises(
        ValueError, match=r"'returns': apply\(\) must edit the model in place .* saw it return a Linear"
    ):
        Returns().unlearn(nn.Linear(2, 2), UnlearningInputs())
