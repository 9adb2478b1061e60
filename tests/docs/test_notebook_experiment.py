"""Every stage of docs/experiments/cifar100-rocket.toml, on a small archive in CIFAR-100's own format."""

from pathlib import Path

import pytest
from cifar_archive import part, write

from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run
from unlearnkit.experiments.train import train_original

TOML = Path(__file__).parents[2] / "docs" / "experiments" / "cifar100-rocket.toml"
ROCKET, CASTLE, APPLE = 69, 17, 0


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    train = part([ROCKET, CASTLE, APPLE, CASTLE, APPLE, 41, 85, ROCKET] * 4)
    write(root, train=train, test=part([ROCKET, CASTLE, APPLE, 41], seed=1))
    return load_config(
        TOML,
        [
            f"output='{root}/out'",
            f"model.checkpoint='{root}/original.safetensors'",
            "model.options.pretrained=false",
            f"data.options={{root='{root}', verify=false, target='coarse', image_size=32, on_device=true}}",
            "data.workers=0",
            "importance.batch_size=8",
            "training={epochs=1, batch_size=8}",
        ],
    )


@pytest.fixture(scope="module")
def records(config):
    train_original(config)
    return {record.label: record for record in run(config)}


def test_all_five_edits_of_the_notebook(records):
    assert list(records) == ["prune", "mask-sums", "mask-means", "dampening-sums", "dampening-means"]
    assert all(record.report.size == 11_186_772 for record in records.values())


def test_the_forget_set_is_the_rockets_and_the_reference_all_others(records):
    forget, retain = records["mask-sums"].report.evidence
    assert (forget.role, forget.samples, forget.batches) == ("forget", 8, "1 × 8")
    assert (retain.role, retain.samples, retain.batches) == ("retain", 24, "3 × 8")
    assert records["prune"].forget["scenario"] == "sub-class"
    assert records["prune"].before["forget-test"].samples == 1
    assert records["prune"].before["retain-test"].samples == 3


def test_sums_have_count_one_and_means_one_term_per_batch(records):
    assert [e.count for e in records["mask-sums"].report.evidence] == [1, 1]
    assert [e.count for e in records["mask-means"].report.evidence] == [1, 3]


def test_the_notebooks_order_of_edited_fractions(records):
    fraction = {label: record.report.fraction for label, record in records.items()}
    assert fraction["prune"] > fraction["mask-means"] > fraction["mask-sums"]
    assert fraction["mask-means"] >= fraction["dampening-means"]
    assert fraction["mask-sums"] >= fraction["dampening-sums"]
