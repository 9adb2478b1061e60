"""Memory of a request beyond the model: twice its largest tensor, and the changed weights."""

import shutil
import warnings

import large_model as heavy
import pytest
from peak_memory import peak, peak_of_python, uncounted_maps

from unlearnkit import Importance
from unlearnkit.deletion import Deletion, rollback
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.train import train_original
from unlearnkit.importance.store import files

MIB = 1 << 20
CONSTANT = 4 * MIB
"""For small tensors that share a file, and for the pieces that a sum or a rule works on at a time."""
MODEL = sum(p.nbytes for p in heavy.network().parameters())


@pytest.fixture(scope="module")
def heavy_root(tmp_path_factory):
    """A configuration and its started ledger."""
    root = tmp_path_factory.mktemp("heavy")
    (root / "heavy.toml").write_text(heavy.TOML.format(root=root))
    config = load_config(root / "heavy.toml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # float32 squares of so deep a network underflow, which does not matter here
        train_original(config)
        Deletion.load(config).start()
    return root


@pytest.fixture
def deletion(heavy_root, tmp_path, monkeypatch):
    """Makes a deletion on the test's own ledger, for counting the memory of `work`."""
    uncounted_maps(monkeypatch)
    monkeypatch.setattr(files, "SHARD_BYTES", MIB)  # a constant that the tensors of a real model are far above
    shutil.copytree(heavy_root / "out" / "ledger", tmp_path / "ledger")
    warnings.simplefilter("ignore")

    def make(*settings):
        return Deletion.load(
            load_config(heavy_root / "heavy.toml", [f"deletion.folder='{tmp_path}/ledger'", *settings])
        )

    return make


def held(work):
    """Process a request; return the bytes beyond the model, and the receipt."""
    most = peak(work.work) - MODEL
    receipt = work.ledger.receipts()[-1]
    assert receipt.outcome == "forgotten"
    assert 0 < receipt.edit["fraction"] < 0.1
    return most, receipt


@pytest.mark.parametrize("reference", ["full", "retain"])
def test_request_for_a_group_needs_twice_the_largest_tensor(deletion, reference):
    work = deletion(f"importance.reference='{reference}'")
    work.ask("ticket", groups=["1"])
    most, receipt = held(work)
    assert most <= 2 * heavy.LARGEST + CONSTANT
    assert receipt.patch_file
    assert peak(lambda: rollback(work)) - MODEL <= 20 * receipt.edit["changed"] + CONSTANT


def test_request_for_samples_needs_no_more_after_the_pass(deletion, tmp_path, monkeypatch):
    """A pass over data needs totals of all weights, but ends before the edit."""
    work = deletion("importance.reference='retain'")
    work.measure(work.ledger.state.base, [6, 7]).save(tmp_path / "measured")
    monkeypatch.setattr(Deletion, "measure", lambda *_: Importance.load(tmp_path / "measured"))
    work.ask("ticket", samples=[6, 7])
    most, _ = held(work)
    assert most <= 2 * heavy.LARGEST + CONSTANT


def test_python_and_numpy_memory_is_small(deletion):
    work = deletion()
    work.ask("ticket", groups=["1"])
    assert peak_of_python(work.work) <= 4 * MIB
