"""Plugins that misbehave while they run: contained and named, and the host continues.

Plugins that cannot be imported or registered, that take an existing name or raise in a registering hook are in
test_manager.py; methods that change a model without the framework's knowledge are in test_unlearner.py. These tests run
the complete path: a plugin is installed, a run requests it by name, and a good plugin still works.
"""
# ruff: noqa: ARG002, ARG005 - the signatures are the framework's

import gc
import random
import re
import sys
import traceback
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from unlearnkit import (
    DiagonalFisher,
    DuplicateMethodError,
    ElementwiseUnlearner,
    Importance,
    ImportanceEstimator,
    Metric,
    MismatchError,
    NonFiniteError,
    Pipeline,
    PluginLoadError,
    PluginManager,
    PluginWarning,
    Run,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    UnlearnKitError,
    hookimpl,
)
from unlearnkit.cli import console
from unlearnkit.cli.app import app
from unlearnkit.models import trainable
from unlearnkit.models.parameters import digest
from unlearnkit.utils.global_state import _STATE

DATA = [(torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([0, 1]))]


@pytest.fixture(autouse=True)
def counted(record_property):
    record_property("tried", ("plugins that misbehave", 1))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()


class Good(ElementwiseUnlearner):
    """A method that behaves."""

    name = "good"

    def rule(self, theta, forget, reference):
        return torch.where(forget > reference, theta / 2, theta)


def plugin(*classes, **hooks):
    module = types.ModuleType("unruly")
    module.unlearners = hookimpl(
        lambda: [c for c in classes if issubclass(c, Unlearner)], specname="unlearnkit_register_unlearners"
    )
    module.estimators = hookimpl(
        lambda: [c for c in classes if issubclass(c, ImportanceEstimator)], specname="unlearnkit_register_estimators"
    )
    for name, function in hooks.items():
        setattr(module, name, hookimpl(function))
    return module


def manager_with(*classes, **hooks):
    manager = PluginManager(entry_points=False)
    manager.register(plugin(*classes, **hooks), name="unruly")
    manager.register(plugin(Good), name="tidy")
    return manager


def perform(manager, name, model, estimator=None):
    pipeline = Pipeline(
        unlearner=manager.unlearner(name)(),
        estimator=estimator or DiagonalFisher(),
        plugins=manager,
        reference_role="retain",
    )
    return pipeline.run(model, forget=DATA, reference=[(x.flip(1), y) for x, y in DATA], model_factory=net)


def method(**members):
    return type("Unruly", (ElementwiseUnlearner,), {"name": "unruly", **members})


def shorter(self, theta, forget, reference):
    return theta.flatten()[:1]


def narrower(self, theta, forget, reference):
    return theta.half()


def elsewhere(self, theta, forget, reference):
    return torch.empty_like(theta, device="meta")


def nan(self, theta, forget, reference):
    return theta / 0 * 0


def nothing(self, theta, forget, reference):
    """Return nothing."""


def in_place(self, theta, forget, reference):
    return theta.mul_(0.5)


def in_place_elsewhere(self, theta, forget, reference):
    forget.zero_()
    return theta


def raises(self, theta, forget, reference):
    raise ZeroDivisionError("no rule today")


def leaves(self, theta, forget, reference):
    sys.exit("the rule is tired")


RULES = {
    shorter: (MismatchError, r"method 'unruly': rule\(\) must return shape"),
    narrower: (MismatchError, r"method 'unruly': rule\(\) must return .*torch.float32 on cpu, saw .*torch.float16"),
    elsewhere: (MismatchError, r"method 'unruly': rule\(\) must return .* on cpu, saw .* on meta"),
    nan: (NonFiniteError, r"method 'unruly': rule\(\) made NaN or infinity of finite weights"),
    nothing: (MismatchError, r"method 'unruly': rule\(\) must return a tensor, saw NoneType"),
    in_place: (MismatchError, r"method 'unruly': rule\(\) must not edit its arguments in place"),
    in_place_elsewhere: (MismatchError, r"method 'unruly': rule\(\) must not edit its arguments in place"),
    raises: (ZeroDivisionError, r"no rule today"),
    leaves: (SystemExit, r"the rule is tired"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda f: f.__name__)
def test_misbehaving_rule_is_named_and_rolled_back_and_the_next_method_works(rule):
    error, said = RULES[rule]
    manager, model = manager_with(method(rule=rule)), net()
    before = digest(model)
    with pytest.raises(error, match=said) as caught:
        perform(manager, "unruly", model)
    if error is not SystemExit:  # not an Exception: it gets no note
        assert "while 'unruly' edited '0.weight'" in caught.value.__notes__
    assert digest(model) == before
    assert perform(manager, "good", model).changed > 0


def test_method_that_edits_buffers_is_named_unless_its_traits_allow_it():
    def edit(self, model, inputs):
        model[1].running_mean.add_(1)
        with torch.no_grad():
            model[0].bias.add_(1)

    members = {"name": "unruly", "needs": frozenset(), "apply": edit}
    forbidden = type("Unruly", (Unlearner,), members)
    allowed = type("Unruly", (Unlearner,), {**members, "traits": UnlearnerTraits(edits_buffers=True)})
    model = net()
    before = digest(model)
    with pytest.raises(MismatchError, match=r"method 'unruly' .*1.running_mean: a buffer was edited"):
        perform(manager_with(forbidden), "unruly", model)
    assert digest(model) == before
    report = perform(manager_with(allowed), "unruly", model)
    assert report.buffers_changed == ("1.running_mean",)
    assert model[1].running_mean.tolist() == [1.0] * 3


def swap(model):
    model[1].running_mean = torch.full((3,), 2.0)


def test_a_buffer_may_be_replaced_where_buffers_may_change_but_stays_the_same_object():
    class Replaces(Unlearner):
        name, needs, traits = "replaces", frozenset(), UnlearnerTraits(edits_buffers=True)

        def apply(self, model, inputs):
            swap(model)

    model = net()
    buffer, place = model[1].running_mean, model[1].running_mean.data_ptr()
    Replaces().unlearn(model, UnlearningInputs())
    assert model[1].running_mean is buffer
    assert buffer.data_ptr() == place
    assert buffer.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    "act",
    [
        lambda model: setattr(model[1], "running_mean", torch.zeros(4)),
        lambda model: setattr(model[1], "running_mean", torch.zeros(3, dtype=torch.float64)),
        lambda model: model[1].register_buffer("extra", torch.zeros(1)),
    ],
    ids=["shape", "dtype", "grows"],
)
def test_the_kind_of_a_buffer_must_stay_even_where_its_values_may_change(act):
    class Reshapes(Unlearner):
        name, needs, traits = "reshapes", frozenset(), UnlearnerTraits(edits_buffers=True)

        def apply(self, model, inputs):
            act(model)

    model = net()
    before, state = digest(model), list(model.state_dict())
    with pytest.raises(MismatchError, match=r"method 'reshapes' .*broke the contract"):
        Reshapes().unlearn(model, UnlearningInputs())
    assert (digest(model), list(model.state_dict())) == (before, state)


@pytest.mark.parametrize("error", [ValueError("late"), KeyboardInterrupt()])
def test_changed_buffers_are_rolled_back_with_the_weights(error):
    class Changes(Unlearner):
        name, needs, traits = "changes", frozenset(), UnlearnerTraits(edits_buffers=True)

        def apply(self, model, inputs):
            swap(model)

    def refuse(report):
        assert report.buffers_changed == ("1.running_mean",)
        raise error

    model = net()
    before, buffer = digest(model), model[1].running_mean
    with pytest.raises(type(error)):
        Changes().unlearn(model, UnlearningInputs(), accept=refuse)
    assert digest(model) == before
    assert model[1].running_mean is buffer


def test_a_nan_in_a_buffer_is_refused_too():
    class Spoils(Unlearner):
        name, needs, traits = "spoils", frozenset(), UnlearnerTraits(edits_buffers=True)

        def apply(self, model, inputs):
            model[1].running_var[0] = float("nan")

    model = net()
    before = digest(model)
    with pytest.raises(NonFiniteError, match=r"after 'spoils' edited them .*1.running_var"):
        Spoils().unlearn(model, UnlearningInputs())
    assert digest(model) == before


def test_method_that_adds_parameters_is_named_and_rolled_back():
    def grow(self, model, inputs):
        model.append(nn.Linear(2, 2))

    unruly = type("Unruly", (Unlearner,), {"name": "unruly", "needs": frozenset(), "apply": grow})
    manager, model = manager_with(unruly), net()
    before, names = digest(model), list(model.state_dict())
    with pytest.raises(MismatchError, match=r"method 'unruly' .*gained, lost or replaced a child module"):
        perform(manager, "unruly", model)
    assert (digest(model), list(model.state_dict())) == (before, names)
    assert perform(manager, "good", model).changed > 0


def test_output_of_a_plugin_is_shown_and_nothing_else_changes(capsys):
    def chatty(self, theta, forget, reference):
        print("editing", tuple(theta.shape))  # noqa: T201
        return Good.rule(self, theta, forget, reference)

    manager, one, other = manager_with(method(rule=chatty)), net(), net()
    perform(manager, "unruly", one)
    assert "editing (3, 2)" in capsys.readouterr().out
    perform(manager, "good", other)
    assert digest(one) == digest(other)


# Estimators and observers


def estimator(measure):
    def estimate_batch(self, model, batch, *, objective):
        return measure(model)

    return type("Unruly", (ImportanceEstimator,), {"name": "unruly", "estimate_batch": estimate_batch})


def totals(model, make):
    return Importance(totals={name: make(p) for name, p in trainable(model).items()}, count=1)


MEASURES = {
    "shape": (lambda m: totals(m, lambda p: torch.ones(1)), MismatchError),
    "device": (lambda m: totals(m, lambda p: torch.ones_like(p, device="meta")), UnlearnKitError),
    "nan": (lambda m: totals(m, lambda p: torch.full_like(p, float("nan"))), NonFiniteError),
    "negative": (lambda m: totals(m, lambda p: -torch.ones_like(p)), UnlearnKitError),
    "names": (lambda m: Importance(totals={"w": torch.ones(1)}, count=1), MismatchError),
    "type": (lambda m: {"w": 1}, MismatchError),
    "weights": (lambda m: (m[0].weight.data.add_(1), totals(m, torch.ones_like))[1], MismatchError),
    "buffers": (lambda m: (m[1].running_mean.add_(1), totals(m, torch.ones_like))[1], MismatchError),
}


@pytest.mark.parametrize("fault", MEASURES)
def test_misbehaving_estimator_is_named_and_rolled_back(fault):
    measure, error = MEASURES[fault]
    manager, model = manager_with(estimator(measure)), net()
    before = digest(model)
    with pytest.raises(error, match="'unruly'"):
        perform(manager, "good", model, manager.estimator("unruly")())
    assert digest(model) == before
    assert perform(manager, "good", model).changed > 0


def test_observer_that_raises_is_named_and_the_run_continues():
    def before_run(run):
        raise ZeroDivisionError("not watching")

    def after_run(run, report):
        sys.exit("gone home")

    manager = manager_with(unlearnkit_before_run=before_run, unlearnkit_after_run=after_run)
    with pytest.warns(PluginWarning) as issued:
        assert perform(manager, "good", net()).changed > 0
    said = [str(w.message) for w in issued]
    assert any("plugin 'unruly' of unruly, unlearnkit_before_run: ZeroDivisionError: not watching" in s for s in said)
    assert any("plugin 'unruly' of unruly, unlearnkit_after_run: SystemExit: gone home" in s for s in said)


def test_an_observer_that_edits_the_model_or_the_report_changes_neither():
    seen = []

    def after_run(run, report):
        seen.append(run)
        run.options["alpha"] = -1
        report.method = "mine"

    manager, one, other = manager_with(unlearnkit_after_run=after_run), net(), net()
    with pytest.warns(PluginWarning, match="FrozenInstanceError"):
        report = perform(manager, "good", one)
    assert report.method == "good"
    perform(PluginManagerOfGood(), "good", other)
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.fill_(9.0),
        lambda t: t.data.fill_(9.0),
        lambda t: t.numpy().fill(9.0),
        lambda t: torch.from_dlpack(t).fill_(9.0),
    ],
    ids=["in place", "data", "numpy", "dlpack"],
)
def test_an_observer_gets_a_copy_of_each_importance(spoil):
    seen = []

    def after_estimate(run, importance):
        seen.append([t.tolist() for t in importance.totals.values()])
        for total in importance.totals.values():
            spoil(total)
        run.options["alpha"] = -1

    manager, one, other = manager_with(unlearnkit_after_estimate=after_estimate), net(), net()
    manager.register(plugin(unlearnkit_after_estimate=after_estimate), name="second")
    perform(manager, "good", one)
    perform(PluginManagerOfGood(), "good", other)
    assert digest(one) == digest(other)
    assert (seen[0], seen[2]) == (seen[1], seen[3])


@pytest.mark.parametrize("hook", ["unlearnkit_before_run", "unlearnkit_after_estimate", "unlearnkit_after_run"])
@pytest.mark.parametrize("name", ["0.weight", "1.running_mean"])
def test_an_observer_that_changes_the_model_is_named_and_the_run_ends(hook, name):
    model = net()
    manager = manager_with()
    manager.register(plugin(**{hook: lambda: None}), name="innocent")
    manager.register(plugin(**{hook: lambda: model.state_dict()[name].numpy().fill(0.5)}), name="culprit")
    before = digest(model)
    with pytest.raises(
        MismatchError, match=rf"plugin 'culprit' of unruly, {hook}: an observer must not change the model.* {name}: "
    ):
        perform(manager, "good", model)
    assert digest(model) == before


@pytest.mark.parametrize("hook", ["unlearnkit_before_run", "unlearnkit_after_run"])
def test_the_model_is_put_back_when_ctrl_c_ends_an_observer(hook):
    def interrupted():
        model[0].weight.data.zero_()
        raise KeyboardInterrupt

    model = net()
    before = digest(model)
    with pytest.raises(KeyboardInterrupt):
        perform(manager_with(**{hook: interrupted}), "good", model)
    assert digest(model) == before


@pytest.mark.parametrize("hook", ["unlearnkit_before_run", "unlearnkit_after_estimate", "unlearnkit_after_run"])
@pytest.mark.parametrize(
    "act",
    [
        lambda m: m.train(),
        lambda m: m[0].weight.requires_grad_(requires_grad=False),
        lambda m: setattr(m[0].weight, "grad", torch.ones(3, 2)),
        lambda m: m[0].register_forward_hook(lambda *_: torch.zeros(2, 3)),
    ],
    ids=["mode", "frozen", "grad", "hook"],
)
def test_what_an_observer_does_around_the_weights_has_no_effect(hook, act):
    one, other = net(), net()
    perform(manager_with(**{hook: lambda: act(one)}), "good", one)
    perform(PluginManagerOfGood(), "good", other)
    assert digest(one) == digest(other)
    assert [m.training for m in one.modules()] == [m.training for m in other.modules()]
    assert [(p.requires_grad, p.grad) for p in one.parameters()] == [(True, None)] * 6
    assert not one[0]._forward_hooks


def test_an_observer_that_finds_the_importances_is_named():
    others = [one for one in gc.get_objects() if type(one) is Importance]  # of other tests in this process

    def after_run():
        for found in gc.get_objects():
            if type(found) is not Importance or any(found is one for one in others):
                continue
            if found.role.value == "forget":
                for total in found.totals.values():
                    total.numpy().fill(1.0)

    model = net()
    before = digest(model)
    with pytest.raises(
        MismatchError, match=r"'unruly' of unruly, .*must not change an importance, saw changes of forget"
    ):
        perform(manager_with(unlearnkit_after_run=after_run), "good", model)
    assert digest(model) == before


def test_an_observer_gets_copies_of_what_its_arguments_hold():
    def after_estimate(importance):
        object.__setattr__(importance.fingerprint, "model", "another")

    def after_run(report):
        object.__setattr__(report.tensors[0], "changed", 999)

    report = perform(
        manager_with(unlearnkit_after_estimate=after_estimate, unlearnkit_after_run=after_run), "good", net()
    )
    assert report.tensors[0].changed < 999


def test_an_observer_cannot_stop_a_run_by_an_error_without_a_text():
    class Silent(Exception):
        def __str__(self):
            raise ZeroDivisionError

    def after_run():
        raise Silent

    with pytest.warns(PluginWarning, match="Silent: its text raises ZeroDivisionError"):
        assert perform(manager_with(unlearnkit_after_run=after_run), "good", net()).changed


# Global state


SETS = {
    "the default dtype": "torch.set_default_dtype(torch.float64)",
    "the default device": "torch.set_default_device('meta')",
    "the grad mode": "torch.set_grad_enabled(False)",
    "the number of threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "deterministic algorithms": "torch.use_deterministic_algorithms(True)",
    "the float32 precision": "torch.set_float32_matmul_precision('medium')",
    "autocast": "torch.set_autocast_enabled('cpu', True)",
    "anomaly detection": "torch.set_anomaly_enabled(True)",
    "cuDNN's flags": "torch.backends.cudnn.benchmark = True",
    "the random state of torch": "torch.default_generator.manual_seed(0)",
    "the seed of CUDA": "torch.cuda.manual_seed(0)",
    "the random state of Python": "random.seed(0)",
    "the random state of numpy": "np.random.seed(0)",
}


RUN = Run(method="m", options={}, estimator="e", model="M")


def globals_now():
    return [str(read()) for read, _ in _STATE.values()]


@pytest.mark.parametrize("what", SETS)
@pytest.mark.parametrize("when", ["import", "registering its metrics", "unlearnkit_before_run"])
def test_global_state_that_a_plugin_sets_is_put_back_and_the_plugin_is_named(what, when, monkeypatch, tmp_path):
    torch.rand(1), random.random(), np.random.rand()
    before = globals_now()
    hook = "unlearnkit_before_run" if when.startswith("unlearnkit") else "unlearnkit_register_metrics"
    act = SETS[what] if when != "import" else "pass"
    lines = [
        "import random, numpy as np, torch",
        "from unlearnkit import hookimpl",
        SETS[what] if when == "import" else "",
    ]
    hooked = ["@hookimpl", f"def {hook}():", f"    {act}", "    return []"]
    install(monkeypatch, tmp_path, "\n".join(lines + hooked), name="setter")
    manager = PluginManager()
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        manager.problems()
        manager.before_run(RUN)
    (said,) = [str(w.message) for w in issued]
    assert "plugin 'setter' of fake-setter 2.0, global state" in said
    assert said.endswith(f"it set {what} in {when}, which was put back")
    assert globals_now() == before
    assert {one.name: one.problem for one in manager.plugins()}["setter"] is None


SAME = {
    "the newer switches of precision": ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "the float32 precision"),
    "the older ones": ("torch.backends.cudnn.allow_tf32 = False", "the float32 precision"),
    "all seeds": ("torch.manual_seed(0)", "the random state of torch, the seed of CUDA"),
    "a state of CUDA": ("torch.cuda.set_rng_state(torch.zeros(16, dtype=torch.uint8))", "the seed of CUDA"),
    "warnings only": ("torch.use_deterministic_algorithms(True, warn_only=True)", "deterministic algorithms"),
}


@pytest.mark.parametrize("what", SAME)
def test_global_state_that_is_set_in_another_way_is_put_back_and_cuda_is_not_started(what):
    source, said = SAME[what]
    before, attributes = globals_now(), {"torch": torch}
    manager = manager_with(unlearnkit_before_run=lambda: exec(source, attributes))
    with pytest.warns(PluginWarning, match=rf"it set {said} in unlearnkit_before_run, which was put back"):
        manager.before_run(RUN)
    assert globals_now() == before
    assert not torch.cuda.is_initialized()


def test_the_random_state_of_a_started_cuda_is_put_back(monkeypatch):
    states = [torch.zeros(16, dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [state.clone() for state in states])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda new: states.__setitem__(slice(None), new))
    manager = manager_with(unlearnkit_before_run=lambda: states[0].fill_(1))
    with pytest.warns(
        PluginWarning, match="it set the random state of CUDA in unlearnkit_before_run, which was put back"
    ):
        manager.before_run(RUN)
    assert states[0].tolist() == [0] * 16


def test_what_torch_cannot_put_back_is_said(monkeypatch):
    threads = [2]
    monkeypatch.setitem(_STATE, "the number of interop threads", (lambda: threads[0], once))
    manager = manager_with(unlearnkit_before_run=lambda: threads.__setitem__(0, 3))
    with pytest.warns(
        PluginWarning, match="it set the number of interop threads in .*, which torch cannot put back: start"
    ):
        manager.before_run(RUN)


def once(_):
    raise RuntimeError("cannot set number of interop threads after parallel work has started")


STOPS = [
    "class Stop(BaseException): pass\nraise Stop('enough')",
    "raise GeneratorExit('enough')",
    "import sys; sys.exit('enough')",
]


@pytest.mark.parametrize("source", STOPS)
def test_whatever_a_plugin_raises_at_import_is_contained(source, monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, source, name="stops")
    with pytest.warns(PluginWarning, match=r"plugin 'stops' of fake-stops 2.0, import: \w+: enough"):
        assert PluginManager().unlearner("ssd").name == "ssd"


def test_ctrl_c_at_import_is_not_contained(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "raise KeyboardInterrupt", name="stops")
    with pytest.raises(KeyboardInterrupt):
        PluginManager().unlearner("ssd")


def test_a_manager_whose_load_was_ended_by_ctrl_c_loads_the_rest_the_next_time(monkeypatch, tmp_path):
    source = "import fake_switch\nif fake_switch.on: raise KeyboardInterrupt\n" + HEAD + METHOD + IDLE_HOOK
    (tmp_path / "fake_switch.py").write_text("on = True")
    install(monkeypatch, tmp_path, source.format(name="mine", more=", reference"), name="stops")
    manager = PluginManager()
    with pytest.raises(KeyboardInterrupt):
        manager.unlearner("mine")
    monkeypatch.setattr(sys.modules["fake_switch"], "on", False)
    assert manager.unlearner("mine").name == "mine"
    assert manager.problems() == ()
    assert [one.name for one in manager.plugins()] == [one.name for one in PluginManager().plugins()]
    assert {entry.name for entry in manager.provided("unlearner")} >= {"ssd", "prune", "unsir"}


# Plugins that offer nothing


HEAD = "from unlearnkit import DiagonalFisher, ElementwiseUnlearner, hookimpl\n"
METHOD = """
class Mine(ElementwiseUnlearner):
    name = "{name}"
    def rule(self, theta, forget{more}):
        return theta
"""
IDLE_HOOK = "@hookimpl\ndef unlearnkit_register_unlearners():\n    return [Mine]\n"
IDLE = {
    "unmarked": (
        METHOD.format(name="mine", more=", reference") + "def unlearnkit_register_unlearners():\n    return [Mine]\n",
        r"nothing unmarked hook: unlearnkit_register_unlearners is not called: write @hookimpl above it",
    ),
    "no return": (
        "@hookimpl\ndef unlearnkit_register_unlearners():\n    [DiagonalFisher]\n",
        r"nothing registering its unlearners: it returned nothing: write `return \[...\]`",
    ),
    "empty list": (
        "@hookimpl\ndef unlearnkit_register_unlearners():\n    return []\n",
        r"nothing no function of it is marked with @hookimpl, or each returns an empty list",
    ),
    "no hook at all": ("", r"nothing no function of it is marked with @hookimpl, or each returns an empty list"),
    "two arguments": (
        METHOD.format(name="mine", more="") + "@hookimpl\ndef unlearnkit_register_unlearners():\n    return [Mine]\n",
        r"nothing registering its unlearners: Mine.rule: expected the parameters \(self, theta, forget, reference\)",
    ),
    "a taken name": (
        METHOD.format(name="ssd", more=", reference")
        + "@hookimpl\ndef unlearnkit_register_unlearners():\n    return [Mine]\n",
        r"unlearner 'ssd' \(also of unlearnkit [\d.]+: asking for it is an error\) usable",
    ),
    "a class for a list": (
        METHOD.format(name="mine", more=", reference")
        + "@hookimpl\ndef unlearnkit_register_unlearners():\n    return Mine\n",
        r"nothing registering its unlearners: expected a list, saw <class 'fake_idle.Mine'>: write `return \[...\]`",
    ),
    "a name for a list": (
        "@hookimpl\ndef unlearnkit_register_unlearners():\n    return 'mine'\n",
        r"nothing registering its unlearners: expected a list, saw 'mine': write `return \[...\]`",
    ),
    "the hook of another kind": (
        "@hookimpl\ndef unlearnkit_register_metrics():\n    return [DiagonalFisher]\n",
        (
            r"nothing registering its metrics: expected a subclass of Metric, saw .*: return it from "
            "unlearnkit_register_estimators"
        ),
    ),
    "unmarked and misspelt": (
        "def unlearnkit_register_unlearner():\n    return []\n",
        (
            r"nothing unmarked hook: unlearnkit_register_unlearner is not called: no hook has this name; did you mean "
            "'unlearnkit_register_unlearners'"
        ),
    ),
    "another parameter": (
        "@hookimpl\ndef unlearnkit_register_unlearners(manager):\n    return []\n",
        r"nothing hook signature: .* Argument\(s\) {'manager'} are declared in the hookimpl",
    ),
    "an error that looks like markup": ("raise ValueError('[/] one\\ntwo')\n", r"nothing import: \[/\] one two"),
    "an error without a text": (
        "class Silent(Exception):\n    def __str__(self): 1 / 0\nraise Silent\n",
        r"nothing import: its text raises ZeroDivisionError",
    ),
    "an observer": ("@hookimpl\ndef unlearnkit_after_run(): ...\n", r"unlearnkit_after_run usable"),
}


@pytest.mark.parametrize("kind", IDLE)
def test_the_list_of_plugins_says_what_each_offers_and_why_one_offers_nothing(kind, monkeypatch, tmp_path):
    from unlearnkit.plugins import manager

    source, said = IDLE[kind]
    install(monkeypatch, tmp_path, HEAD + source, name="idle")
    monkeypatch.setattr(manager, "default_manager", PluginManager)
    monkeypatch.setattr(console.out, "width", 400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listed = CliRunner().invoke(app, ["plugins"])
    assert listed.exit_code == 0
    rows = [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in listed.output.splitlines()]
    assert re.search(rf"^idle fake-idle 2.0 fake_idle {said}", next(row for row in rows if row.startswith("idle")))
    assert re.search(
        r"^prune unlearnkit [\d.]+ unlearnkit_methods.prune unlearner 'prune' usable", "\n".join(rows), re.M
    )


@pytest.mark.parametrize("entry", [Good, type("Hooks", (), {})], ids=lambda cls: cls.__name__)
def test_a_class_is_no_plugin(entry):
    with pytest.raises(
        PluginLoadError, match=rf"expected a module or an object with hooks, saw the class {entry.__name__}"
    ):
        PluginManager(entry_points=False).register(entry)


def test_two_methods_of_one_name_in_one_plugin_are_both_named():
    class Double(Good):
        pass

    manager = PluginManager(entry_points=False)
    manager.register(plugin(Good, Double), name="unruly")
    with pytest.raises(DuplicateMethodError, match=r"'good' is both Good and .*Double of unruly: rename one"):
        manager.unlearner("good")


def test_the_error_for_one_plugin_has_no_stories_of_the_others(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "raise ValueError('a long story')", name="chatty")
    install(monkeypatch, tmp_path, "raise ValueError('mine')", name="broken")
    manager = PluginManager()
    with pytest.warns(PluginWarning):
        manager.problems()
    for name in ("broken", "brokem"):
        with pytest.raises(UnlearnKitError) as caught:
            manager.unlearner(name)
        assert "a long story" not in "".join(traceback.format_exception(caught.value))


def PluginManagerOfGood():
    manager = PluginManager(entry_points=False)
    manager.register(plugin(Good), name="tidy")
    return manager


# A newer host


def install(monkeypatch, tmp_path, source, *, name="newer"):
    (tmp_path / f"fake_{name}.py").write_text(source)
    info = tmp_path / f"fake_{name}-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: fake-{name}\nVersion: 2.0\nRequires-Dist: unlearnkit>=99\n"
    )
    (info / "entry_points.txt").write_text(f"[unlearnkit]\n{name} = fake_{name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, f"fake_{name}", raising=False)


NEWER = {
    "a name": ("from unlearnkit import Certificate\n", r"import: ImportError: cannot import name 'Certificate'"),
    "an argument of a hook": (
        "from unlearnkit import hookimpl\n@hookimpl\ndef unlearnkit_before_run(run, certificate): ...\n",
        r"hook signature: PluginValidationError: (?s:.*)certificate",
    ),
    "a trait": (
        "from unlearnkit import UnlearnerTraits\nUnlearnerTraits(certified=True)\n",
        r"import: TypeError: .*unexpected keyword argument 'certified'",
    ),
    "a hook": (
        "from unlearnkit import hookimpl\n@hookimpl\ndef unlearnkit_certify(report): ...\n",
        r"unknown hook: PluginLoadError: no hook is called 'unlearnkit_certify'",
    ),
}


@pytest.mark.parametrize("wants", NEWER)
def test_a_plugin_for_a_newer_host_is_named_with_its_version_and_the_shipped_methods_work(wants, monkeypatch, tmp_path):
    source, said = NEWER[wants]
    install(monkeypatch, tmp_path, source)
    manager = PluginManager()
    with pytest.warns(PluginWarning, match=rf"plugin 'newer' of fake-newer 2.0, {said}"):
        assert manager.unlearner("ssd").name == "ssd"


@pytest.mark.parametrize("source", ["raise ValueError('today not')", "print('hello'); 1/0", "import sys; sys.exit(3)"])
def test_commands_work_beside_a_broken_plugin(source, monkeypatch, tmp_path):
    from unlearnkit.plugins import manager

    install(monkeypatch, tmp_path, source, name="broken")
    monkeypatch.setattr(manager, "default_manager", PluginManager)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listed = CliRunner().invoke(app, ["methods"])
        plugins = CliRunner().invoke(app, ["plugins"])
    assert listed.exit_code == plugins.exit_code == 0
    assert "ssd" in listed.output
    assert "`unlearnkit plugins` says why" in listed.output
    assert "fake-broken" in plugins.output


def test_a_metric_that_raises_stops_no_other_metric():
    class Fails(Metric):
        name = "fails"

        def measure(self, inputs):
            raise ZeroDivisionError

    class Counts(Metric):
        name = "counts"

        def measure(self, inputs):
            return {"weights": 1}

    from unlearnkit import EvaluationInputs

    inputs = EvaluationInputs(model=net(), splits={})
    with pytest.raises(ZeroDivisionError):
        Fails().evaluate(inputs)
    assert Counts().evaluate(inputs) == {"weights": 1.0}
