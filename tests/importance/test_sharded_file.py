"""Sharded importances on disk: written by 2 processes, read by 3 and by 1, refused when damaged."""

import shutil

import pytest
import torch
from sharded_model_tasks import damaged, importances, network, reads, run_on_ranks, saves
from torch import nn
from unlearnkit_methods.prune import Prune

from unlearnkit import Importance, MismatchError, StoreError, UnlearningInputs
from unlearnkit.importance.sharded_file import FILE, load_sharded, save_sharded
from unlearnkit.models.parameters import digest


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return folder / "importance", run_on_ranks(folder, saves)


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "copy")


def assert_equal(found, one):
    assert (found.count, found.samples, found.role, found.trail) == (one.count, one.samples, one.role, one.trail)
    assert (found.fingerprint, found.relative_error) == (one.fingerprint, one.relative_error)
    assert {name: t.dtype for name, t in found.totals.items()} == {name: t.dtype for name, t in one.totals.items()}
    for name, total in one.totals.items():
        assert torch.equal(found.totals[name], total), name


def test_two_processes_read_what_they_wrote(saved):
    for found, written in saved[1]:
        assert_equal(found, written)


def test_one_process_reads_the_full_tensors(saved):
    path, ranks = saved
    assert_equal(load_sharded(path), ranks[0][1])
    assert_equal(load_sharded(path, network()), ranks[0][1])
    assert not list(path.parent.glob(".*"))
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}  # no pickle


def test_edit_in_one_process_accepts_it(saved):
    """Fingerprints compare as with one process: the digest is that of the full model."""
    model, one = network(), network()
    forget = load_sharded(saved[0])
    Prune(tau=1e-3).unlearn(model, UnlearningInputs(forget=forget))
    Prune(tau=1e-3).unlearn(one, UnlearningInputs(forget=importances(one)[0]))
    assert digest(model) == digest(one)
    with pytest.raises(MismatchError, match="it was measured on the weights"):
        Prune(tau=1e-3).unlearn(one, UnlearningInputs(forget=forget))


def test_three_processes_read_it_and_edit(saved, tmp_path):
    path, ranks = saved
    model = network()
    Prune(tau=1e-3).unlearn(model, UnlearningInputs(forget=ranks[0][1]))
    for found in run_on_ranks(tmp_path, reads, str(path), size=3):
        assert_equal(found["importance"], ranks[0][1])
        assert found["after"] == digest(model)


def test_one_process_writes_what_it_reads(tmp_path):
    whole = Importance(totals={"a.b": torch.rand(3, 2), "scalar": torch.rand(())}, count=2)
    save_sharded(whole, tmp_path / "importance")
    assert_equal(load_sharded(tmp_path / "importance"), whole)
    save_sharded(whole + whole, tmp_path / "importance")
    assert load_sharded(tmp_path / "importance").count == 4


def test_the_relative_error_is_kept(tmp_path):
    for error in (0.5, 0.0, None):
        save_sharded(Importance(totals={"a": torch.rand(2)}, count=2, relative_error=error), tmp_path / "importance")
        assert load_sharded(tmp_path / "importance").relative_error == error


def test_another_model_is_refused_by_name(saved):
    with pytest.raises(MismatchError, match=r"(?s)does not fit the model.*0\.weight: expected shape \(3, 3\)"):
        load_sharded(saved[0], nn.Sequential(nn.Linear(3, 3)))


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _pieces(folder):
    return sorted(folder.glob("*.safetensors"))


DAMAGE = {
    "the digest of what was written": lambda folder: _flip(_pieces(folder)[0]),
    "expected, but missing": lambda folder: _pieces(folder)[1].unlink(),
    "not expected": lambda folder: shutil.copy(_pieces(folder)[0], folder / "more.safetensors"),
    "the file was changed": lambda folder: _edit(folder / FILE, '"count": 3', '"count": 2'),
    "expected a file": lambda folder: (folder / FILE).unlink(),
    "and no link": lambda folder: _link(_pieces(folder)[0]),
    "IsADirectoryError|NotADirectoryError": lambda folder: _swap_for_folder(_pieces(folder)[0]),
}


def _edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _link(path):
    moved = path.rename(path.parent.parent / "elsewhere.safetensors")
    path.symlink_to(moved)


def _swap_for_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("said", DAMAGE)
def test_a_damaged_folder_is_refused(copy, said):
    DAMAGE[said](copy)
    with pytest.raises(StoreError, match=said):
        load_sharded(copy)


def test_damage_found_by_one_rank_is_raised_on_all(copy, tmp_path):
    _flip(_pieces(copy)[1])
    for said in run_on_ranks(tmp_path, damaged, str(copy)):
        assert "rank 1: shard-00002" in said
