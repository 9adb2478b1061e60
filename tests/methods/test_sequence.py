"""The sequence of methods: one transaction, one report, importances for the first step, laws, errors, configuration."""

import json

import attrs
import pytest
import torch
from safetensors.torch import load_file
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.prune import Prune
from unlearnkit_methods.salun import SalUn
from unlearnkit_methods.sequence import Sequence
from unlearnkit_methods.ssd import SelectiveSynapticDampening as SSD

from unlearnkit import (
    ConfigurationError,
    Importance,
    Need,
    Pipeline,
    PluginManager,
    UnknownMethodError,
    Unlearner,
    UnlearningInputs,
    hookimpl,
)
from unlearnkit.deletion import Deletion
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.experiments import Comparison
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.experiment import make_unlearner
from unlearnkit.experiments.run import run
from unlearnkit.experiments.tune import tune
from unlearnkit.models.parameters import digest, trainable
from unlearnkit.plugins.manager import default_manager
from unlearnkit.reporting import read_record
from unlearnkit.testing import check_unlearner
from unlearnkit.utils.errors import BudgetError

REPAIRED = Sequence(steps=(Prune(tau=0.5), FineTune(epochs=2, learning_rate=0.01)))


@pytest.mark.parametrize(
    "steps", [(SSD(alpha=2.0), FineTune(epochs=1)), (FineTune(epochs=1), FineTune(epochs=1, mode="eval"))]
)
def test_laws(steps):
    check_unlearner(Sequence(steps=steps), examples=5)


def test_the_steps_one_after_the_other_by_hand(tiny, close):
    model, report = tiny.unlearned(REPAIRED)
    other, first = tiny.unlearned(REPAIRED.steps[0])
    before = digest(other)
    second = REPAIRED.steps[1].unlearn(other, tiny.inputs(other, forget=None))
    close(model, other, rtol=0, atol=0)
    assert [(s.method, s.changed, s.options) for s in report.steps] == [
        (s.method, s.changed, s.options) for s in (first, second)
    ]
    assert (report.steps[0].model_after, report.steps[1].model_before) == (before, before)
    assert (report.model_before, report.model_after) == (first.model_before, second.model_after)
    assert report.options == {
        "steps": [{"name": "prune", "options": {"tau": 0.5}}, {"name": "finetune", "options": second.options}]
    }
    assert [len(s.evidence) for s in (report, *report.steps)] == [1, 1, 0]
    assert report.seconds["edit"] >= sum(s.seconds["edit"] for s in report.steps)


def test_all_steps_or_none(tiny):
    model = tiny.model()
    before = digest(model)
    broken = [*tiny.retain, (torch.full((2, 3), torch.nan, dtype=torch.float64), torch.tensor([0, 1]))]
    with pytest.raises(Exception, match="NaN"):
        REPAIRED.unlearn(model, tiny.inputs(model, retain_data=broken))
    assert digest(model) == before
    with pytest.raises(BudgetError):
        REPAIRED.unlearn(model, tiny.inputs(model, max_fraction=0.5))
    assert digest(model) == before


def test_needs_and_promises_are_those_of_the_steps():
    assert REPAIRED.requires() == {Need.FORGET_IMPORTANCE, Need.RETAIN_DATA}
    assert REPAIRED.promises().edits_buffers
    assert not Sequence(steps=(Prune(), FineTune(mode="eval"))).promises().edits_buffers
    with pytest.raises(ConfigurationError, match=r"expected retain_data .*RETAIN_DATA"):
        Sequence(steps=(FineTune(),)).unlearn(torch.nn.Linear(2, 2), UnlearningInputs())


def test_a_pipeline_measures_only_what_a_step_needs(tiny):
    model, measured = tiny.model(), []

    class Watch:
        @hookimpl
        def unlearnkit_after_estimate(self, role):
            measured.append(role)

    plugins = PluginManager()
    plugins.register(Watch(), name="watch")
    data = {"forget": tiny.forget, "reference": tiny.retain, "retain_data": tiny.retain}
    Pipeline(unlearner=REPAIRED, plugins=plugins).run(model, **data)
    assert measured == ["forget"]


def test_passes_of_all_steps_are_counted_on(tiny):
    model, seen = tiny.model(), []
    steps = Sequence(steps=(FineTune(epochs=2), FineTune(epochs=1)))
    steps.unlearn(model, tiny.inputs(model, after_pass=lambda _, number: seen.append(number)))
    assert seen == [1, 2, 3]


ROLES = ((1, "forget"), (4, "full"))


def test_remarks_of_a_step_are_in_the_report(tiny):
    model = tiny.model()
    zeros = {name: torch.zeros_like(p) for name, p in trainable(model).items()}
    forget, full = (Importance(totals={n: z + 1 for n, z in zeros.items()}, count=c, role=r) for c, r in ROLES)
    inputs = tiny.inputs(model, forget=forget, reference=full)
    report = Sequence(steps=(SSD(), FineTune(epochs=1))).unlearn(model, inputs)
    assert report.steps[0].changed == 0 < report.changed
    assert any(r.startswith("ssd: The largest F_f/F_r seen is 4;") for r in report.remarks)


@attrs.frozen(kw_only=True)
class Greedy(Unlearner):
    """Uses a step that needs more than it says."""

    name = "greedy"
    needs = frozenset()

    def apply(self, model, inputs):
        inputs.edit_by(FineTune(epochs=1), model)


def test_a_method_declares_what_its_steps_need(tiny):
    model = tiny.model()
    with pytest.raises(ConfigurationError, match=r"'greedy' reads inputs.retain_data without declaring it"):
        Greedy().unlearn(model, tiny.inputs(model))


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((), r"at least one method, saw none: list them, as \[\[method.steps\]\]"),
        ((FineTune,), "objects of methods, saw <class .*FineTune'> as step 1"),
        ((REPAIRED,), "no sequence within a sequence, saw one as step 1"),
        ((FineTune(), SSD()), "no importances after the first step, saw 'ssd', which needs them, as step 2"),
        ((Prune(), SalUn()), "saw 'salun', which needs them, as step 2"),
    ],
)
def test_what_is_no_sequence(steps, said):
    with pytest.raises(ConfigurationError, match=said):
        Sequence(steps=steps)


REPAIR = "\n[[method]]\nname = 'sequence'\nlabel = 'repaired'\n" + "".join(
    f"[[method.steps]]\nname = '{name}'\noptions = {options}\n"
    for name, options in (("ssd", "{ fraction = 0.05, lam = 0.1 }"), ("finetune", "{ epochs = 1 }"))
)


@pytest.fixture
def repair_toml(digits_toml):
    digits_toml.write_text(digits_toml.read_text() + REPAIR)
    return digits_toml


ONLY = "method=[{name='sequence', label='repaired', steps=%s}]"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("method=[{name='sequence', label='repaired'}]", r"method.repaired.options: missing .*'steps'"),
        ("method.repaired.steps=[]", r"method.repaired.options: missing .*'steps'"),
        (
            "method.repaired.steps.ssd.name='sds'",
            r"method.repaired.steps.0 \('sds'\): no unlearner is called 'sds'; did",
        ),
        (
            "method.repaired.steps.finetune.options.epochs=0",
            r"steps.1 \('finetune'\): FineTune.epochs: expected a whole",
        ),
        ("method.repaired.steps.1.options.epoch=1", r"steps.1 \('finetune'\): options: unknown option 'epoch'"),
        ("method.repaired.steps.1.name='sequence'", r"steps.1 \('sequence'\): options: unknown option 'epochs'"),
        ("method.repaired.steps.1.step=1", "method.2.steps.1.step: unknown key"),
        ("method.ssd.steps=[{name='prune'}]", "method.ssd.options: unknown option 'steps'"),
    ],
)
def test_a_mistake_in_a_configuration_names_the_step(repair_toml, setting, said):
    def make():
        return [make_unlearner(method, default_manager()) for method in load_config(repair_toml, [setting]).method]

    with pytest.raises((ConfigurationError, UnknownMethodError), match=said):
        make()


def test_a_configuration_runs_it_and_its_record_can_be_read(repair_toml, trained_checkpoint, tmp_path):
    overrides = ["method.repaired.steps.ssd.options.fraction=0.1", "evaluation.page=true"]
    record = {r.label: r for r in run(load_config(repair_toml, overrides))}["repaired"]
    folder = tmp_path / "out" / "repaired"
    before, after = load_file(trained_checkpoint), load_file(folder / "model.safetensors")
    report = json.loads((folder / "report.json").read_text())
    assert report["changed"] == sum(int((before[t["name"]] != after[t["name"]]).sum()) for t in report["tensors"])
    assert [(s["method"], s["options"].get("fraction")) for s in report["steps"]] == [("ssd", 0.1), ("finetune", None)]
    assert 0 < report["steps"][0]["fraction"] <= 0.11
    assert read_record(folder).report.steps[1] == record.report.steps[1]
    assert "Steps of sequence, in order" in (folder / "report.html").read_text()


def test_all_steps_are_tuned_as_one(repair_toml):
    steps = "[{name='ssd', options={lam=0.1}}, {name='finetune', options={epochs=1}}]"
    tuned = tune(load_config(repair_toml, [ONLY % steps, "tuning.trials=3", "tuning.budget=0.9"]))
    names = {"ssd.fraction", "finetune.learning_rate"}
    assert [c.options.keys() for c in tuned.tuning.candidates] == [names] * 3
    chosen = tuned.tuning.chosen.options
    ssd, finetune = tuned.record.report.options["steps"]
    assert ssd["options"]["fraction"] == chosen["ssd.fraction"]
    assert (ssd["options"]["lam"], finetune["options"]["epochs"]) == (0.1, 1)
    assert finetune["options"]["learning_rate"] == chosen["finetune.learning_rate"]
    assert Tuning.from_dict(tuned.record.tuning).candidates == tuned.tuning.candidates
    fixed = "[{name='ssd', options={alpha=5.0}}, {name='finetune', options={epochs=1}}]"
    other = tune(load_config(repair_toml, [ONLY % fixed, "tuning.trials=1"]), overwrite=True)
    assert other.tuning.candidates[0].options.keys() == {"finetune.learning_rate"}, "α is set, in place of the fraction"


def test_a_comparison_knows_the_options_of_each_step(repair_toml):
    settings = ("", "method.repaired.steps.finetune.options.epochs=2", "method.repaired.steps.1.name='l1-sparse'")
    keys = {Comparison.plan(load_config(repair_toml, [s] if s else [])).trials[2].key for s in settings}
    assert len(keys) == len(settings)


def test_a_ledger_edits_by_it(repair_toml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deletion = Deletion.load(load_config(repair_toml, ["deletion.method=repaired", "deletion.budget=1.0"]))
    deletion.start()
    deletion.ask("one", groups=["3"])
    receipt = deletion.work()
    assert receipt.outcome == "forgotten"
    assert [step["method"] for step in receipt.edit["steps"]] == ["ssd", "finetune"]
