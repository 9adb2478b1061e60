"""`Corruption`: which samples are corrupted, how, and which are known; the forget set from a configuration."""

import pickle

import attrs
import numpy as np
import pytest
import torch

from unlearnkit import ConfigurationError
from unlearnkit.data import Corruption, DataBundle, KnownCorrupted, LabelledImages, digits, forget_split
from unlearnkit.experiments.comparison.trial import forget_text, trials_of
from unlearnkit.experiments.config import Config, DataConfig, ForgetConfig, MethodConfig, ModelConfig, load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.run import run
from unlearnkit.experiments.train import train_original


def small(n=40, *, classes=4, rows=None):
    labels = torch.arange(n) % classes
    images = torch.rand(n, 1, 5, 5, generator=torch.Generator().manual_seed(0)) + 1
    part = LabelledImages(images=images, labels={"fine": labels, "label": labels}, target="label")
    train = part if rows is None else part.subset(rows)
    return DataBundle(name="small", train=train, test=part)


@pytest.mark.parametrize(("share", "known", "counts"), [(0.2, 0.5, (32, 4, 4)), (0.25, 1.0, (30, 0, 10))])
def test_wrong_labels(share, known, counts):
    bundle = small()
    data = Corruption(share=share, known=known).apply(bundle).train
    state, right = data.labels["corruption"], data.labels["true"]
    assert tuple(state.bincount(minlength=3).tolist()) == counts
    assert torch.equal(right, bundle.train.targets)
    assert torch.equal(data.targets != right, state > 0)
    assert data.kinds == ("fine", "true", "corruption", "label")
    assert all(torch.equal(a[0], b[0]) for a, b in zip(data, bundle.train, strict=True))


def test_wrong_labels_are_uniform_over_the_others():
    data = Corruption(share=1.0).apply(small(8000)).train
    moved = (data.targets - data.labels["true"]) % 4
    assert moved.bincount(minlength=4).tolist() == pytest.approx([0, 2667, 2667, 2667], abs=150)


@pytest.mark.parametrize("rows", [None, np.arange(39, -1, -1)])
def test_triggers(rows):
    bundle = small(rows=rows)
    data = Corruption(share=0.2, kind="trigger", label=2, size=2).apply(bundle).train
    hit = (data.labels["corruption"] > 0).tolist()
    assert sum(hit) == 8
    for item, before, with_trigger in zip(data, bundle.train, hit, strict=True):
        x, *_, right, _, label = item
        expected = before[0].clone()
        if with_trigger:
            expected[:, -2:, -2:] = before[0].max()
            assert (int(label), int(right) != 2) == (2, True)
        else:
            assert label == right
        assert torch.equal(x, expected)
    assert len(pickle.loads(pickle.dumps(data))) == 40  # loader workers pickle it


def test_the_test_set_stays_clean():
    bundle = small()
    test = Corruption(share=0.5, kind="trigger").apply(bundle).test
    assert not test.labels["corruption"].any()
    assert torch.equal(test.targets, bundle.test.targets)
    assert torch.equal(test.labels["true"], bundle.test.targets)


def test_a_seed_gives_the_same_samples_and_another_one_others():
    first, again, other = (Corruption(seed=seed).apply(small()).train for seed in (0, 0, 1))
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.labels["corruption"], other.labels["corruption"])


@pytest.mark.parametrize("wrong", [{"share": 0.001}, {"share": 0.9, "kind": "trigger"}])
def test_shares_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"corrupted.share: expected 1 to \d+ samples"):
        Corruption(**wrong).apply(small())


def test_the_known_ones_are_the_forget_set():
    bundle = Corruption(share=0.2, known=0.5).apply(digits())
    split = forget_split(bundle, KnownCorrupted())
    assert split.train.forget.tolist() == (bundle.train.labels["corruption"] == 2).nonzero().flatten().tolist()
    assert (split.train.scenario, len(split.test.forget)) == ("corrupted", 0)
    with pytest.raises(ConfigurationError, match="expected labels of kind 'corruption'"):
        forget_split(digits(), KnownCorrupted())


def test_a_configuration_corrupts_what_every_command_sees():
    config = Config(
        output="out",
        model=ModelConfig(factory="unlearnkit.models:small_cnn"),
        data=DataConfig(name="digits"),
        forget=ForgetConfig(corrupted=Corruption(share=0.1)),
        method=(MethodConfig(name="finetune"),),
    )
    experiment = Experiment.load(config)
    assert len(experiment.splits()["forget-train"]) == 68  # half of a tenth of 1,347
    assert int((experiment.bundle.train.targets != digits().train.targets).sum()) == 135
    assert [trial.forget for trial in trials_of(config)] == ["corrupted=0.1 labels, 0.5 known"]
    both = attrs.evolve(config.comparison, forget=(config.forget, ForgetConfig(classes=(3,))))
    with pytest.raises(ConfigurationError, match="expected corrupted alone"):
        list(trials_of(attrs.evolve(config, comparison=both)))


def test_retraining_without_the_known_ones_heals_them(tmp_path):
    """30 % wrong labels, all known; the original learns some of them by heart."""
    (tmp_path / "heal.toml").write_text(f"""
output = "{tmp_path}/out"
[model]
factory = "unlearnkit.models:small_cnn"
checkpoint = "{tmp_path}/original.safetensors"
[data]
name = "digits"
[forget.corrupted]
share = 0.3
known = 1.0
[training]
epochs = 15
learning_rate = 1e-2
[evaluation]
metrics = ["healed"]
page = false
[[method]]
name = "retrain"
options = {{ epochs = 4 }}
""")
    config = load_config(tmp_path / "heal.toml")
    train_original(config)
    (record,) = run(config)
    found = record.metrics["healed"]
    assert found["known"] > found["original known"] + 0.05
    assert record.forget["scenario"] == "corrupted"


def test_only_one_of_the_five_is_taken():
    with pytest.raises(ConfigurationError, match=r"indices_file, corrupted, saw \['classes', 'corrupted'\]"):
        ForgetConfig(classes=(3,), corrupted=Corruption()).spec()
    assert forget_text(ForgetConfig(classes=(3, 7))) == "classes=3,7"
