"""The tables of docs/results/notebook-cifar10.md from the same code, on a few hundred small images and a small net."""

import importlib.util
import random
from pathlib import Path

import attrs
import numpy as np
import pytest
from digits_as_cifar10 import write_images

from unlearnkit.evaluation.metrics.retrain_gap import tug_of_war

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "cifar10.py"
TRAIN, TEST = 16, 8


def _module():
    spec = importlib.util.spec_from_file_location("cifar10_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cifar10 = _module()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("cifar10"), train=TRAIN, test=TEST)


@pytest.fixture(scope="module")
def bench(images, tmp_path_factory):
    settings = (
        f"data.options.root='{images}'",
        "data.options.image_size=8",
        f"data.options.per_class={TRAIN}",
        f"data.options.test_per_class={TEST}",
        "model.factory='unlearnkit.models:small_cnn'",
        "model.options={channels=3, width=4, image_size=8}",
        "training.epochs=8",
        "evaluation.page=false",
        "training.learning_rate=0.01",
    )
    return cifar10.Worker(folder=tmp_path_factory.mktemp("out"), settings=settings)


@pytest.fixture(scope="module")
def random_bench(bench):
    return attrs.evolve(bench, settings=(*bench.settings, "forget.indices=[0, 20, 40, 60, 80, 100, 120, 140]"))


def test_the_notebooks_table(bench):
    reports = bench.notebook()
    assert list(reports) == ["prune", "mask-sums", "mask-means", "dampening-sums", "dampening-means"]
    lines = cifar10.notebook_table(reports).splitlines()
    assert len(lines) == 2 + 1 + 5
    prune = reports["prune"]
    assert lines[3].split("|")[1:3] == [" prune ", f" {prune['fraction']:.4f} "]
    assert prune["before"]["forget-test"]["samples"] == TEST
    assert prune["before"]["retain-test"]["samples"] == 9 * TEST


def test_the_alpha_sweep(bench):
    reports = bench.alpha()
    assert list(reports) == list(cifar10.ESTIMATORS)
    for some in reports.values():
        fractions = [report["fraction"] for report in some.values()]
        assert fractions == sorted(fractions, reverse=True)  # a larger α selects no more
    sample, ordered, shuffled, _ = (some["alpha-1"]["evidence"] for some in reports.values())
    assert [e["role"] for e in sample] == ["forget", "retain"]
    assert ordered[1]["batches"] == shuffled[1]["batches"] == "2 × 64, 1 × 16"
    assert ordered != shuffled
    table = cifar10.alpha_table(reports).splitlines()
    assert len(table) == 2 + len(next(iter(reports.values())))
    assert table[2].startswith("| 0.5 |")


@pytest.mark.parametrize("name", ["subclass", "full-class", "random"])
def test_a_scenario_against_retrained_models(name, bench, random_bench):
    chosen = random_bench if name == "random" else bench
    rows = chosen.scenario(name, [0])
    assert {step: len(some) for step, some in rows.items()} == {
        "retrained": 3,
        "original, not edited": 1,
        **dict.fromkeys(cifar10.STEPS, 1),
    }
    assert len(list((chosen.folder / "retrained").glob("*.safetensors"))) >= 3
    forgets = {"subclass": True, "full-class": True, "random": False}[name]
    for row in (row for some in rows.values() for row in some):
        assert ("forget-test" in row) is forgets
        assert 0 <= row["ToW"] <= 1
    mean = {split: np.mean([row[split] for row in rows["retrained"]]) for split in cifar10.TUG}
    row = rows["ssd, tuned"][0]
    assert row["ToW"] == pytest.approx(tug_of_war({split: row[split] for split in cifar10.TUG}, mean))
    assert row["gap"] == pytest.approx(row["forget-train"] - mean["forget-train"])
    table = cifar10.scenario_table(rows).splitlines()
    assert len(table) == 2 + len(rows)


def test_a_second_call_measures_nothing_again(bench, monkeypatch):
    rows = bench.scenario("full-class", [0])
    for name in ("run", "tune", "train_original", "retrained_models", "accuracies"):
        monkeypatch.setattr(cifar10, name, None)
    assert bench.scenario("full-class", [0]) == rows


def test_a_spread_needs_two_values():
    assert cifar10._spread([]) == ""
    assert cifar10._spread([0.5]) == "0.500"
    assert cifar10._spread([0.4, 0.6]) == "0.500 ± 0.141"


def test_the_indices_are_drawn_as_the_file_says():
    config = cifar10.load_config(cifar10.EXPERIMENTS / "cifar10-random.toml")
    assert list(config.forget.indices) == sorted(random.Random(0).sample(range(2500), 100))
