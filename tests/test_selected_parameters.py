"""`only=` and `exclude=`: in a pipeline, in `unlearn`, in a configuration, in a comparison and in a search."""

import copy

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.retrain import Retrain
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from tests.test_pipeline import CE, FORGET, FULL, RETAIN, net
from unlearnkit import ConfigurationError, DiagonalFisher, Pipeline, unlearn
from unlearnkit.experiments.comparison.trial import keyed, trials_of
from unlearnkit.experiments.config import MethodConfig, load_config
from unlearnkit.experiments.run import run
from unlearnkit.models import digest


def changed(model, before):
    theirs = dict(before.named_parameters())
    return {name for name, p in model.named_parameters() if not torch.equal(p, theirs[name])}


def ssd(**chosen):
    return Pipeline(SelectiveSynapticDampening(alpha=1.5), **chosen)


LAST = {"2.weight", "2.bias"}


@pytest.mark.parametrize("chosen", [{"only": "2.*"}, {"exclude": ("0.*",)}])
def test_the_edit_is_that_of_a_model_whose_other_parameters_are_frozen(chosen):
    model, other = net(), net()
    other[0].requires_grad_(requires_grad=False)
    report, want = (
        ssd(**chosen).run(model, forget=FORGET, reference=FULL),
        ssd().run(other, forget=FORGET, reference=FULL),
    )
    assert digest(model) == digest(other) != digest(net())
    assert report.tensors == want.tensors
    assert {t.name for t in report.tensors} == LAST
    assert report.left_out == ("0.weight", "0.bias")
    assert "2 parameters left out: 0.weight, 0.bias." in report.sentence()
    assert report.to_dict()["left_out"] == ["0.weight", "0.bias"]
    assert want.left_out == ()
    assert "left out" not in want.sentence()
    assert all(p.requires_grad for p in model.parameters())


def test_importances_of_all_weights_give_the_same_edit():
    """Known ones, and those of a function, which `run`, `compare` and a ledger pass; the model itself, after it."""
    one, other, third = net(), net(), net()
    measured = {
        role: DiagonalFisher().estimate(net(), batches, objective=CE)
        for role, batches in {"forget": FORGET, "reference": FULL}.items()
    }
    ssd(only="2.*").run(one, forget=FORGET, reference=FULL)
    ssd(only="2.*").run(other, **measured)
    ssd(only="2.*").run(third, **{role: lambda found=found: found for role, found in measured.items()})
    assert digest(one) == digest(other) == digest(third)
    assert len(measured["forget"].totals) == 4


def test_only_what_is_selected_is_measured():
    found = []

    class Noting(DiagonalFisher.__base__):
        name = "noting"
        traits = DiagonalFisher.traits

        def estimate_batch(self, model, batch, *, objective):
            found.append({name for name, p in model.named_parameters() if p.requires_grad})
            return DiagonalFisher().estimate(model, [batch], objective=objective)

    ssd(only="2.*", estimator=Noting()).run(net(), forget=FORGET, reference=FULL)
    assert found == [LAST] * (len(FORGET) + len(FULL))


@pytest.mark.parametrize("method", [FineTune(epochs=1), Retrain(epochs=1)])
def test_methods_that_train_change_what_is_selected_alone(method):
    model = net()
    report = Pipeline(method, exclude="*.bias").run(
        model, forget=FORGET, retain_data=RETAIN, model_factory=lambda: copy.deepcopy(net())
    )
    assert changed(model, net()) == {"0.weight", "2.weight"} == {t.name for t in report.tensors}


def test_flags_and_weights_come_back_when_the_edit_fails():
    model = net()

    def refuse(report):
        assert report.left_out
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ssd(only="2.*").run(model, forget=FORGET, reference=FULL, accept=refuse)
    assert digest(model) == digest(net())
    assert all(p.requires_grad for p in model.parameters())


def test_unlearn():
    model = net()
    report = unlearn(model, "ssd", forget=FORGET, retain=RETAIN, only=["2.*"], exclude="*.bias", alpha=1.5)
    assert changed(model, net()) == {"2.weight"} == {t.name for t in report.tensors}
    with pytest.raises(ConfigurationError, match=r"only: no parameter matches '3\.\*': the closest are .*'2\.bias'"):
        unlearn(model, "ssd", forget=FORGET, retain=RETAIN, only="3.*")


@pytest.fixture
def two_selections(digits_toml):
    def table(label, keys):
        return f"{{name='ssd', label='{label}', options={{alpha=3.0}}{keys}}}"

    methods = [
        table("head", ", only=['head.*']"),
        table("all", ""),
        table("body", ", exclude=['type:*Norm*', 'head.*']"),
    ]
    return load_config(digits_toml, [f"method=[{','.join(methods)}]"])


def test_methods_of_a_configuration_do_not_mix_their_importances(two_selections, tmp_path, trained_checkpoint):
    records = {record.label: record for record in run(two_selections)}
    original = load_file(trained_checkpoint)
    edited = {label: load_file(tmp_path / "out" / label / "model.safetensors") for label in records}
    weights = [name for name in original if "running" not in name and "num_batches" not in name]
    assert {t.name for t in records["head"].report.tensors} == {"head.weight", "head.bias"}
    assert {t.name.split(".")[1] for t in records["body"].report.tensors} == {"0", "4"}
    assert len(records["all"].report.tensors) == len(weights)
    for label in ("head", "body"):
        mine = {t.name for t in records[label].report.tensors}
        assert set(records[label].report.left_out) == set(weights) - mine
        for name in weights:  # each weight is edited as by all weights' edit, or not at all
            assert torch.equal(edited[label][name], edited["all"][name] if name in mine else original[name])


def test_a_tuned_method_changes_what_is_selected_alone(digits_toml):
    options = ["method=[{name='ssd', tuned=true, only=['head.*']}]", "tuning={fractions=[0.05, 0.2], rounds=0}"]
    (record,) = run(load_config(digits_toml, options))
    assert {t.name for t in record.report.tensors} == {"head.weight", "head.bias"}
    assert record.report.left_out


def test_a_trial_of_a_comparison_depends_on_the_selection(digits_toml):
    config = load_config(digits_toml, ["forget={classes=[3]}"])
    chosen = [
        MethodConfig(name="ssd"),
        MethodConfig(name="ssd", only=("head.*",)),
        MethodConfig(name="ssd", exclude=("head.*",)),
    ]
    keys = {keyed(trials_of(attrs.evolve(config, method=(one,)))[0], {}).key for one in chosen}
    assert len(keys) == 3


def test_a_compound_model_takes_classes_of_modules():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    report = ssd(exclude="type:LayerNorm").run(model, forget=FORGET, reference=FULL)
    assert report.left_out == ("1.weight", "1.bias")
