"""The pipeline: two importances, one edit, one report, and a model that is never half edited."""
# ruff: noqa: ARG002 - the signatures are the framework's

import types
from collections import Counter

import attrs
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import (
    BatchedDiagonalFisher,
    BudgetError,
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    ElementwiseUnlearner,
    MismatchError,
    Need,
    Pipeline,
    PluginManager,
    PluginWarning,
    SketchedFisher,
    Unlearner,
    UnlearningInputs,
    UnlearnKitWarning,
    hookimpl,
    unlearn,
)
from unlearnkit.importance import Role
from unlearnkit.models import parameters
from unlearnkit.models import snapshot as snapshots
from unlearnkit.models.parameters import digest
from unlearnkit.models.snapshot import ModelSnapshot
from unlearnkit.unlearning import unlearner as unlearner_module

CE = CrossEntropy()


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    model(torch.ones(1, 3)).sum().backward()
    return model


def data(rows, size=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 3, generator=generator)
    y = torch.arange(24) % 3
    return list(zip(x[rows].split(size), y[rows].split(size), strict=True))


FORGET, RETAIN, FULL = data(slice(0, 4)), data(slice(4, 24)), data(slice(0, 24))


def test_data_that_are_refused_leave_gradients_and_tied_weights_as_they_are():
    model = net()
    model.tied = nn.Linear(3, 8)
    model.tied.weight.data = model[0].weight.data
    objects, grads = [*model.parameters()], [p.grad for p in model.parameters()]
    assert grads[0] is not None
    with pytest.raises(ConfigurationError, match="saw the data set TensorDataset"):
        Pipeline(unlearner=SelectiveSynapticDampening()).run(
            model, forget=TensorDataset(torch.zeros(2, 3), torch.zeros(2).long()), reference=FULL
        )
    assert all(p is was for p, was in zip(model.parameters(), objects, strict=True))
    assert all(p.grad is was for p, was in zip(model.parameters(), grads, strict=True))


class Keep(Unlearner):
    """A method that keeps the inputs it was given."""

    name = "keep"
    needs = frozenset({Need.FORGET_IMPORTANCE, Need.REFERENCE_IMPORTANCE})

    def apply(self, model, inputs):
        self.inputs = attrs.evolve(inputs, reader=None)
        with torch.no_grad():
            model[0].bias.add_(1)


def keep_that_needs(*needs):
    return type("Keep", (Keep,), {"needs": frozenset(needs)})()


def pipeline(unlearner=None, **fields):
    return Pipeline(**{"unlearner": unlearner or Keep(), "plugins": PluginManager(entry_points=False), **fields})


class Left:
    def __init__(self, model):
        self.model = model

    def state(self):
        grads = [(id(p.grad), p.grad.tolist()) for p in self.model.parameters()]
        return digest(self.model), grads, self.model.training, torch.get_rng_state().tolist()

    def __enter__(self):
        self.before = self.state()

    def __exit__(self, *_):
        assert self.state() == self.before


def test_pipeline_equals_its_three_steps():
    model, other = net(), net()
    method = SelectiveSynapticDampening(alpha=1.5)
    report = pipeline(method).run(model, forget=FORGET, reference=FULL)
    forget = DiagonalFisher().estimate(other, FORGET, objective=CE, role="forget")
    full = DiagonalFisher().estimate(other, FULL, objective=CE, role="full")
    want = method.unlearn(other, UnlearningInputs(forget=forget, reference=full))
    assert report.changed == want.changed > 0
    assert digest(model) == digest(other) == report.model_after
    assert [e.role for e in report.evidence] == ["forget", "full"]
    assert [e.samples for e in report.evidence] == [4, 24]
    assert report.options == {"alpha": 1.5, "lam": 1.0, "fraction": None, "epsilon": 0.0}


def test_report_has_the_relative_error_of_a_sketch():
    sketch = SketchedFisher(probes=3)
    method = SelectiveSynapticDampening(alpha=1.5)
    report = Pipeline(unlearner=method, estimator=sketch).run(net(), forget=FORGET, reference=FULL)
    found = [sketch.estimate(net(), data, objective=CE).relative_error for data in (FORGET, FULL)]
    assert [e.relative_error for e in report.evidence] == found
    assert 0 < found[1] < found[0]
    assert len(report.uncertainty()) == 1


def test_the_seconds_of_each_stage_are_recorded():
    report = pipeline().run(net(), forget=FORGET, reference=FULL)
    assert list(report.seconds) == ["forget importance", "full importance", "edit"]
    assert all(value >= 0 for value in report.seconds.values())


@pytest.mark.parametrize("role", ["full", "retain", Role.RETAIN])
def test_the_role_of_the_reference_is_recorded(role):
    keep = Keep()
    report = pipeline(keep, reference_role=role).run(net(), forget=FORGET, reference=RETAIN)
    assert keep.inputs.reference.role is Role(role)
    assert report.evidence[1].role == Role(role).value
    assert f"{Role(role).value} importance" in report.seconds


def test_unnormalised_compares_sums():
    keep = Keep()
    pipeline(keep, normalise=False).run(net(), forget=FORGET, reference=RETAIN)
    sums = DiagonalFisher().estimate(net(), RETAIN, objective=CE)
    assert keep.inputs.reference.count == 1
    assert keep.inputs.reference.samples == 20
    for name, mean in keep.inputs.reference.mean().items():
        assert torch.equal(mean, sums.totals[name])


def test_a_known_importance_is_used_as_it_is():
    model, keep = net(), Keep()
    unknown = DiagonalFisher().estimate(model, FORGET, objective=CE)
    retain = DiagonalFisher().estimate(model, RETAIN, objective=CE, role="retain")
    report = pipeline(keep).run(model, forget=unknown, reference=retain)
    assert keep.inputs.forget.role is Role.FORGET
    assert keep.inputs.forget.totals is unknown.totals or torch.equal(
        keep.inputs.forget.totals["0.weight"], unknown.totals["0.weight"]
    )
    assert keep.inputs.reference is retain
    assert list(report.seconds) == ["edit"]
    assert keep.inputs.forget_data is None


def test_only_needed_importances_are_measured():
    keep = keep_that_needs(Need.FORGET_DATA, Need.RETAIN_DATA)
    report = pipeline(keep).run(net(), forget=FORGET, retain_data=RETAIN, reference=FULL, seed=5)
    assert list(report.seconds) == ["edit"]
    assert (keep.inputs.forget, keep.inputs.reference) == (None, None)
    assert keep.inputs.forget_data is FORGET
    assert keep.inputs.retain_data is RETAIN
    assert keep.inputs.seed == 5
    other = keep_that_needs(Need.FORGET_DATA)
    pipeline(other).run(net(), forget=FORGET, forget_data=FULL)
    assert other.inputs.forget_data is FULL


@pytest.mark.parametrize(("given_", "missing"), [({"forget": FORGET}, "reference"), ({"reference": FULL}, "forget")])
def test_a_missing_set_is_named(given_, missing):
    model = net()
    said = rf"method 'keep' needs the {missing} set: pass {missing}= batches or an Importance"
    with Left(model), pytest.raises(ConfigurationError, match=said):
        pipeline().run(model, **given_)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"unlearner": "ssd"}, r"Pipeline.unlearner: expected an object of Unlearner, saw 'ssd'"),
        ({"unlearner": SelectiveSynapticDampening}, r"pass an object, not its class"),
        (
            {"estimator": DiagonalFisher},
            r"Pipeline.estimator: expected an object of ImportanceEstimator.*not its class",
        ),
        ({"reference_role": "everything"}, r"role of a data set, saw 'everything'"),
        ({"max_fraction": 2.0}, r"Pipeline.max_fraction: expected None or 0 to 1, saw 2.0"),
    ],
)
def test_a_wrong_part_is_refused_before_anything_runs(fields, said):
    with pytest.raises(ConfigurationError, match=said):
        pipeline(**fields)


def test_importances_of_two_kinds_are_refused():
    model = net()
    batched = BatchedDiagonalFisher().estimate(model, FORGET, objective=CE)
    with Left(model), pytest.raises(MismatchError, match=r"(?s)different kinds.*diagonal-fisher.*unit"):
        pipeline().run(model, forget=batched, reference=FULL)


def test_a_repeated_request_with_the_same_importances_is_refused():
    model = net()
    forget = DiagonalFisher().estimate(model, FORGET, objective=CE)
    pipeline().run(model, forget=forget, reference=FULL)
    with Left(model), pytest.raises(MismatchError, match=r"edited or trained since; estimate again"):
        pipeline().run(model, forget=forget, reference=DiagonalFisher().estimate(model, FULL, objective=CE))


def test_the_budget_rolls_back():
    model = net()
    with Left(model), pytest.raises(BudgetError, match=r"saw 8 of 59"):
        pipeline(max_fraction=0.1).run(model, forget=FORGET, reference=FULL)


def test_impossible_selection_is_reported_in_words():
    model = net()
    with Left(model), pytest.warns(UnlearnKitWarning, match=r"α = 10 can select nothing.*1/p = 6"):
        report = pipeline(SelectiveSynapticDampening()).run(model, forget=FORGET, reference=FULL)
    assert report.changed == 0
    assert "can select nothing" in report.sentence()


# Observers


class Watcher:
    def __init__(self, calls, tag="", error=None, when=""):
        self.calls, self.tag, self.error, self.when = calls, tag, error, when

    def note(self, what, *details):
        self.calls.append((self.tag + what, *details))
        if what == self.when:
            raise self.error

    @hookimpl
    def unlearnkit_before_run(self, run):
        self.note("before", run.method, run.estimator, run.model)

    @hookimpl
    def unlearnkit_after_estimate(self, run, role, importance):
        self.note("estimate", role, importance.count)

    @hookimpl
    def unlearnkit_after_run(self, run, report):
        self.note("after", report.changed, len(report.seconds))


CALLS = [
    ("before", "keep", "diagonal-fisher", "Sequential"),
    ("estimate", "forget", 4),
    ("estimate", "full", 24),
    ("after", 8, 3),
]


def test_observers_are_called_in_order_also_for_given_importances():
    manager, calls = PluginManager(entry_points=False), []
    manager.register(Watcher(calls))
    pipeline(plugins=manager).run(net(), forget=FORGET, reference=FULL)
    assert calls == CALLS
    model = net()
    known = DiagonalFisher().estimate(model, FORGET, objective=CE)
    pipeline(plugins=manager).run(model, forget=known, reference=FULL)
    assert calls[4:7] == CALLS[:3]


def test_an_observer_may_ask_for_less_than_it_is_offered():
    manager, seen = PluginManager(entry_points=False), []
    module = types.ModuleType("small")
    module.unlearnkit_after_run = hookimpl(lambda report: seen.append(report.method), specname="unlearnkit_after_run")
    manager.register(module)
    pipeline(plugins=manager).run(net(), forget=FORGET, reference=FULL)
    assert seen == ["keep"]


@pytest.mark.parametrize("when", ["before", "estimate", "after"])
@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(1)])
def test_a_raising_observer_is_named_and_stops_neither_the_run_nor_the_others(when, error):
    manager, calls = PluginManager(entry_points=False), []
    manager.register(Watcher(calls, "a-"), name="first")
    manager.register(Watcher(calls, "b-", error, when), name="faulty")
    manager.register(Watcher(calls, "c-"), name="last")
    model = net()
    said = rf"plugin 'faulty' .*unlearnkit_\w+: {type(error).__name__}"
    with pytest.warns(PluginWarning, match=said):
        report = pipeline(plugins=manager).run(model, forget=FORGET, reference=FULL)
    assert report.changed == 8
    for tag in "abc":
        assert [(c[0][2:], *c[1:]) for c in calls if c[0].startswith(tag)] == CALLS


# A run that ends early restores the model


def interrupting(items, after):
    yield from items[:after]
    raise KeyboardInterrupt


class Stops(ElementwiseUnlearner):
    name = "stops"

    def rule(self, theta, forget, reference):
        if theta.dim() == 2:
            return theta * 0
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("unlearner", "forget", "reference", "when"),
    [
        (Keep(), interrupting(FORGET, 1), FULL, ""),
        (Keep(), FORGET, interrupting(FULL, 3), ""),
        (Stops(), FORGET, FULL, ""),
        (Keep(), FORGET, FULL, "before"),
        (Keep(), FORGET, FULL, "estimate"),
        (Keep(), FORGET, FULL, "after"),
    ],
    ids=["forget", "reference", "rule", "before", "estimate", "after"],
)
def test_ctrl_c_at_any_moment(unlearner, forget, reference, when):
    manager = PluginManager(entry_points=False)
    manager.register(Watcher([], "", KeyboardInterrupt(), when))
    model = net()
    with Left(model), pytest.raises(KeyboardInterrupt):
        pipeline(unlearner, plugins=manager).run(model, forget=forget, reference=reference)


def test_a_warning_of_an_observer_made_an_error_rolls_back():
    manager = PluginManager(entry_points=False)
    manager.register(Watcher([], "", ValueError("mine"), "after"))
    model = net()
    with Left(model), pytest.raises(PluginWarning):  # the suite turns warnings into errors
        pipeline(plugins=manager).run(model, forget=FORGET, reference=FULL)


# The model is read no more often than it must be


@pytest.mark.parametrize("unlearner", [Keep(), SelectiveSynapticDampening(alpha=1.5)], ids=["any", "elementwise"])
def test_the_model_is_hashed_before_and_after_checked_and_copied_once(unlearner, monkeypatch):
    seen = Counter()

    def counted(owner, name, what):
        real = getattr(owner, name)

        def count(*arguments, **named):
            seen[what] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, count)

    counted(parameters, "blake3", "digest")
    counted(ModelSnapshot, "__init__", "snapshot")
    for module in (snapshots, unlearner_module):
        counted(module, "check_finite", "finite")
    report = pipeline(unlearner).run(net(), forget=FORGET, reference=FULL)
    assert report.changed > 0
    after = 0 if isinstance(unlearner, ElementwiseUnlearner) else 1  # a rule's edit is checked piece by piece
    assert seen == {"digest": 2, "snapshot": 1, "finite": 1 + after}


def test_a_model_that_an_observer_edits_between_importance_and_edit_is_refused():
    class Editing:
        @hookimpl
        def unlearnkit_after_estimate(self, role):
            if role == "full":
                with torch.no_grad():
                    model[2].bias.data.add_(1)

    manager, model = PluginManager(entry_points=False), net()
    manager.register(Editing())
    before = digest(model)
    with pytest.raises(MismatchError, match=r"an observer must not change the model, which was put back.* of 2.bias"):
        pipeline(plugins=manager).run(model, forget=FORGET, reference=FULL)
    assert digest(model) == before


def test_a_model_that_is_edited_between_importance_and_edit_is_refused():
    def measure_and_edit():
        found = DiagonalFisher().estimate(model, FULL, objective=CE, role="full")
        with torch.no_grad():
            model[2].bias.data.add_(1)
        return found

    model = net()
    with pytest.raises(MismatchError, match=r"(?s)edited or trained since.*estimate again.*2.bias"):
        pipeline().run(model, forget=FORGET, reference=measure_and_edit)


# Used by the other commands


def test_a_function_gives_an_importance_only_when_it_is_needed():
    model, calls = net(), []

    def measure(data, role):
        calls.append(role)
        return DiagonalFisher().estimate(model, data, objective=CE, role=role)

    given = {"forget": lambda: measure(FORGET, "forget"), "reference": lambda: measure(FULL, "full")}
    report = pipeline(SelectiveSynapticDampening(alpha=1.5)).run(model, **given)
    assert calls == ["forget", "full"]
    assert list(report.seconds) == ["forget importance", "full importance", "edit"]
    pipeline(keep_that_needs(Need.FORGET_DATA)).run(model, **given, forget_data=FORGET)
    assert calls == ["forget", "full"]


def test_refused_edit_is_rolled_back_before_observers_run():
    manager, calls, model = PluginManager(entry_points=False), [], net()
    manager.register(Watcher(calls))

    def refuse(report):
        assert report.changed == 8
        assert list(report.seconds) == ["forget importance", "full importance", "edit"]
        raise BudgetError("too much")

    with Left(model), pytest.raises(BudgetError, match="too much"):
        pipeline(plugins=manager).run(model, forget=FORGET, reference=FULL, accept=refuse)
    assert [call[0] for call in calls] == ["before", "estimate", "estimate"]


def test_a_search_in_place_of_the_edit_has_its_inputs_and_its_observers():
    manager, calls, seen = PluginManager(entry_points=False), [], []
    manager.register(Watcher(calls))

    def search(model, inputs, *, accept):
        seen.append(inputs)
        return accept(Keep().unlearn(model, inputs))

    report = pipeline(plugins=manager).run(net(), forget=FORGET, reference=FULL, seed=7, edit=search)
    assert (seen[0].seed, seen[0].reference.role) == (7, Role.FULL)
    assert calls == CALLS
    assert list(report.seconds) == ["forget importance", "full importance", "edit"]


def test_provider_of_the_method_is_recorded():
    report = Pipeline(unlearner=SelectiveSynapticDampening(alpha=1.5)).run(net(), forget=FORGET, reference=FULL)
    assert report.provider.startswith("unlearnkit ")
    assert pipeline().run(net(), forget=FORGET, reference=FULL).provider == ""


def test_a_function_that_makes_batches_is_no_importance():
    batch = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    with pytest.raises(ConfigurationError, match="forget: expected a function that returns an Importance"):
        unlearn(nn.Linear(3, 2), "ssd", forget=lambda: batch, retain=batch)
