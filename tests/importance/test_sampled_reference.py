"""A reference from a sample: its mean by hand, what it may not be mixed with, and its way through pipeline and run."""

import json

import attrs
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler, Subset, SubsetRandomSampler, TensorDataset
from unlearnkit_methods.fisher_noise import FisherNoise
from unlearnkit_methods.ssd import SelectiveSynapticDampening as SSD

from unlearnkit import (
    BatchedDiagonalFisher,
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    Pipeline,
    PluginManager,
    UnlearnKitError,
    UnlearnKitWarning,
    hookimpl,
)
from unlearnkit.data import LabelledImages, digits, forget_split, loader
from unlearnkit.data.loaders import draw_samples, drawn_rows, reshuffled
from unlearnkit.data.splits import ByClass
from unlearnkit.deletion import Deletion
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run
from unlearnkit.experiments.tune import tune
from unlearnkit.importance import Importance, Role, sampled_reference
from unlearnkit.models.zoo import small_cnn
from unlearnkit.utils.errors import MismatchError

TEXT = "100 of 1210 retained samples, seed 0"


def estimate(model, batches, role):
    return DiagonalFisher().estimate(model, batches, objective=CrossEntropy(), role=role)


@pytest.fixture(scope="module")
def parts():
    data = digits(seed=0)
    split = forget_split(data, ByClass(classes=3)).train
    return data.train.subset(split.forget), data.train.subset(split.retain)


def batches(data: LabelledImages, size=64):
    return loader(data, batch_size=size)


@pytest.fixture
def model():
    return small_cnn(seed=0, width=2).eval()


def by_hand(model, parts):
    """F_D = p·F_f + (1 − p)·F_s from means over single samples."""
    forget, retain = parts
    rows = drawn_rows(len(retain), 100, seed=0)
    f = estimate(model, batches(forget), Role.FORGET).to(dtype=torch.float64).mean()
    s = estimate(model, batches(retain.subset(rows)), Role.RETAIN).to(dtype=torch.float64).mean()
    p = len(forget) / (len(forget) + len(retain))
    return {name: p * f[name] + (1 - p) * s[name] for name in f}


def test_rows_are_drawn_without_replacement_from_the_seed():
    rows = drawn_rows(1000, 300, seed=0)
    assert len(np.unique(rows)) == 300
    assert (rows[:-1] < rows[1:]).all()
    assert rows.max() > 900, "from all, not from the first"
    assert not np.array_equal(rows, drawn_rows(1000, 300, seed=1))
    assert len(drawn_rows(5, 9, seed=0)) == 5


@pytest.mark.parametrize("size", [7, 64])
def test_the_same_samples_from_a_loader_and_from_a_list(parts, size):
    _, retain = parts
    rows = drawn_rows(len(retain), 20, seed=4)
    expected = torch.stack([retain[int(row)][0] for row in rows])
    for given in (batches(retain, size), list(batches(retain, size))):
        drawn, total = draw_samples(given, count=20, seed=4)
        assert total == len(retain)
        assert torch.equal(torch.cat([x for x, *_ in drawn]), expected)


def test_a_pipeline_composes_it_and_says_so(model, parts):
    seen = {}

    class Watch:
        @hookimpl
        def unlearnkit_after_estimate(self, role, importance):
            seen[role] = importance

    plugins = PluginManager()
    plugins.register(Watch(), name="watch")
    forget, retain = parts
    expected = by_hand(model, parts)
    pipeline = Pipeline(unlearner=SSD(alpha=3.0), reference_samples=100, plugins=plugins)
    report = pipeline.run(model, forget=batches(forget), retain_data=batches(retain))
    reference = seen["full"]
    for name, mean in reference.mean().items():
        torch.testing.assert_close(mean.double(), expected[name], rtol=1e-5, atol=0)
    assert (reference.role, reference.count, reference.samples) == (Role.FULL, 1347, 237)
    assert [e.fingerprint.sample for e in report.evidence] == ["", TEXT]
    assert report.uncertainty() == (f"The full importance is of a sample: {TEXT}.",)


def test_of_the_retain_set_alone_and_for_a_method_that_needs_no_forget_importance(model, parts):
    forget, retain = parts
    samples = estimate(model, batches(retain.subset(drawn_rows(len(retain), 100, seed=2))), Role.RETAIN)
    pipeline = Pipeline(unlearner=FisherNoise(), reference_role="retain", reference_samples=100)
    (evidence,) = pipeline.run(model, retain_data=batches(retain), seed=2).evidence
    assert (evidence.role, evidence.count, evidence.samples) == ("retain", 1210, 100)
    one = sampled_reference(samples, retained=1210, seed=2)
    torch.testing.assert_close(one.mean(), samples.mean())
    full = attrs.evolve(pipeline, reference_role="full")
    with pytest.warns(UnlearnKitWarning, match="F_r was measured on the full set"):
        (evidence,) = full.run(model, forget=batches(forget), retain_data=batches(retain)).evidence
    assert (evidence.role, evidence.count, evidence.samples) == ("full", 1347, 237)
    with pytest.raises(ConfigurationError, match="expected forget= batches, for they are exact, saw none"):
        full.run(model, retain_data=batches(retain))


def test_what_a_pipeline_refuses(model, parts):
    forget, retain = parts
    pipeline = Pipeline(unlearner=SSD(), reference_samples=5)
    with pytest.raises(ConfigurationError, match="no reference=, saw a reference"):
        pipeline.run(model, forget=batches(forget), reference=batches(retain), retain_data=batches(retain))
    with pytest.raises(ConfigurationError, match="saw no retain_data"):
        pipeline.run(model, forget=batches(forget))
    with pytest.raises(ConfigurationError, match="expected a whole number ≥ 0, saw -1"):
        Pipeline(unlearner=SSD(), reference_samples=-1)
    by_batches = attrs.evolve(pipeline, estimator=BatchedDiagonalFisher())
    with pytest.raises(ConfigurationError, match="saw 'batched-diagonal-fisher', whose terms are of batches"):
        by_batches.run(model, forget=batches(forget), retain_data=batches(retain))


def importance(value, samples):
    return Importance(totals={"w": torch.full((2,), value)}, count=samples, samples=samples)


def test_it_is_never_mixed_with_one_of_all_samples(tmp_path):
    full, sample = importance(9.0, 9), importance(2.0, 2)
    drawn = sampled_reference(sample, retained=9, seed=1)
    assert drawn.mean()["w"].tolist() == [1.0, 1.0]
    for mix in (lambda: full + drawn, lambda: full - drawn, lambda: drawn + full, lambda: drawn - sample):
        with pytest.raises(MismatchError, match=r"sample: ('' against ')?2 of 9|sample: '2 of 9"):
            mix()
    other = sampled_reference(sample, retained=9, seed=2)
    with pytest.raises(MismatchError, match="seed 1' against '2 of 9 retained samples, seed 2'"):
        drawn.merge(other)
    assert sampled_reference(sample, retained=2, seed=2).fingerprint == sample.fingerprint, "all of them"
    drawn.save(tmp_path / "drawn.safetensors")
    assert Importance.load(tmp_path / "drawn.safetensors").fingerprint == drawn.fingerprint
    with pytest.raises(ConfigurationError, match="expected 1 to 1 samples, saw 2"):
        sampled_reference(sample, retained=1, seed=0)


def test_run_and_tune_draw_it_and_their_records_say_so(digits_toml, tmp_path):
    config = load_config(digits_toml, ["importance.reference_samples=100", "evaluation.page=true", "seed=0"])
    records = {record.label: record for record in run(config)}
    (_, evidence) = records["ssd"].report.evidence
    assert (evidence.role, evidence.count, evidence.samples, evidence.fingerprint.sample) == ("full", 1347, 237, TEXT)
    assert len(records["prune"].report.evidence) == 1
    report = json.loads((tmp_path / "out" / "ssd" / "report.json").read_text(encoding="utf-8"))
    assert report["evidence"][1]["fingerprint"]["sample"] == TEXT
    assert f"The full importance is of a sample: {TEXT}." in report["sentence"]
    assert report["manifest"]["config"]["importance"]["reference_samples"] == 100
    assert f"<td>{TEXT}</td>" in (tmp_path / "out" / "ssd" / "report.html").read_text(encoding="utf-8")
    quick = ["tuning.method=ssd", "tuning.fractions=[0.1]", "tuning.rounds=0", "tuning.budget=1"]
    tuned = tune(load_config(digits_toml, [*quick, "importance.reference_samples=100"]))
    assert tuned.record.report.evidence[1].fingerprint.sample == "100 of 968 retained samples, seed 0"


def test_run_gives_what_the_pipeline_gives_and_a_sample_of_all_is_exact(digits_toml, tmp_path):
    def edited(count, output):
        settings = [f"importance.reference_samples={count}", f"output='{tmp_path / output}'"]
        return {r.label: r for r in run(load_config(digits_toml, settings))}["ssd"].report

    full, some, every = edited(0, "a"), edited(100, "b"), edited(1210, "c")
    assert every.model_after == full.model_after != some.model_after
    assert every.evidence == full.evidence


def test_a_ledger_refuses_it(digits_toml):
    settings = ["deletion.method=ssd", "importance.reference_samples=100"]
    with pytest.raises(UnlearnKitError, match="reference_samples: expected 0 for a ledger"):
        Deletion.load(load_config(digits_toml, settings))


@pytest.mark.parametrize("how", ["subset", "sampler", "list", "batches", "sequential"])
def test_samples_are_drawn_from_what_a_loader_reads_not_from_its_data_set(how):
    data = TensorDataset(torch.arange(100.0)[:, None], torch.arange(100) // 90)
    kept = list(range(90))
    loader = {
        "subset": lambda: DataLoader(Subset(data, kept), 10),
        "sampler": lambda: DataLoader(data, 10, sampler=SubsetRandomSampler(kept)),
        "list": lambda: DataLoader(data, 10, sampler=kept[::-1]),
        "batches": lambda: DataLoader(data, batch_sampler=[kept[:50], kept[50:]]),
        "sequential": lambda: DataLoader(data, 10, sampler=SequentialSampler(range(90))),
    }[how]()
    state = torch.get_rng_state()
    drawn, total = draw_samples(loader, count=80, seed=0)
    found = torch.cat([x for x, _ in drawn]).flatten().tolist()
    assert (len(found), total) == (80, 90)
    assert found == sorted(found)
    assert max(found) < 90
    assert torch.equal(torch.get_rng_state(), state)
    assert max(float(x.max()) for x, _ in reshuffled(loader, seed=0)) < 90
