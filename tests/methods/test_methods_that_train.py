"""What all methods that train have in common, and each of them by name on the digits."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from unlearnkit import PluginManager
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run

NAMES = ("bad-teacher", "finetune", "jit", "neg-grad-plus", "retrain", "salun", "scrub")
each_method = pytest.mark.parametrize("name", NAMES)


def method(name, **options):
    cls = PluginManager().unlearner(name)
    return cls(**{"epochs": 2, **options})


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


@each_method
def test_every_weight_may_move_the_report_says_how_many_and_the_model_is_left_in_its_mode(tiny, name):
    before = tiny.model()
    model, report = tiny.unlearned(method(name))
    moved = {
        key: int((was != now).sum())
        for (key, was), now in zip(before.named_parameters(), model.parameters(), strict=True)
    }
    assert {t.name: t.changed for t in report.tensors} == moved
    assert report.changed > 0
    assert not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@each_method
def test_the_same_seed_gives_the_same_bits(tiny, name):
    results = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        results.append(state(tiny.unlearned(method(name), seed=0)[0]))
    assert same(*results)


@each_method
def test_frozen_parameters_keep_their_bits(tiny, name):
    def freeze(model):
        model[0].weight.requires_grad_(requires_grad=False)
        model[4].bias.requires_grad_(requires_grad=False)

    before = tiny.model()
    model, report = tiny.unlearned(method(name), prepare=freeze)
    assert torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[4].bias, before[4].bias)
    assert report.changed > 0


@each_method
def test_the_evidence_and_a_copy_of_the_model_are_left_as_they_are(tiny, name):
    model = tiny.model()
    other = copy.deepcopy(model)
    inputs = tiny.inputs(model)
    data = copy.deepcopy((inputs.forget_data, inputs.retain_data))
    method(name).unlearn(model, inputs)
    for one, now in zip(data, (inputs.forget_data, inputs.retain_data), strict=True):
        assert all(torch.equal(a, b) for x, y in zip(one, now, strict=True) for a, b in zip(x, y, strict=True))
    assert same(state(other), state(tiny.model()))


def options(name):
    more = ", max_epochs = 3, learning_rate = 3e-3" if name == "scrub" else ""
    return f"epochs = {3 if more else 2}{more}"


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory, trained_checkpoint):
    """Every method by name, from one configuration, on the digits."""
    root = tmp_path_factory.mktemp("methods")
    methods = "".join(f'[[method]]\nname = "{name}"\noptions = {{ {options(name)} }}\n' for name in NAMES)
    (root / "experiment.toml").write_text(
        f'output = "{root}/out"\ndevice = "cpu"\n'
        f'[model]\nfactory = "unlearnkit.models:small_cnn"\noptions = {{ width = 4 }}\n'
        f'checkpoint = "{trained_checkpoint}"\n[data]\nname = "digits"\n[forget]\nclasses = [3]\n{methods}'
    )
    return {r.label: (r, root / "out" / r.label) for r in run(load_config(root / "experiment.toml"))}


@each_method
def test_it_runs_by_name_on_the_digits(trained_runs, trained_checkpoint, name):
    record, folder = trained_runs[name]
    original, edited = load_file(trained_checkpoint), load_file(folder / "model.safetensors")
    plain = json.loads((folder / "report.json").read_text())
    assert plain["method"] == name
    assert plain["options"]["epochs"] == (3 if name == "scrub" else 2)
    assert plain["changed"] == sum(int((original[t.name] != edited[t.name]).sum()) for t in record.report.tensors) > 0
    buffers = [key for key in original if "running" in key or "num_batches" in key]
    assert set(plain["buffers_changed"]) == {key for key in buffers if not torch.equal(original[key], edited[key])}


FORGETS = ("bad-teacher", "neg-grad-plus", "retrain", "salun", "scrub")


@pytest.mark.parametrize("name", FORGETS)
def test_it_forgets_the_class_and_keeps_the_others(trained_runs, name):
    record, _ = trained_runs[name]
    assert record.after["forget-test"].accuracy < 0.5 * record.before["forget-test"].accuracy
    assert record.after["retain-test"].accuracy > (0.5 if name == "retrain" else 0.85)
