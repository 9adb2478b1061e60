"""Mutated files: each loader loads them or raises one clear error, and does nothing else.

Mutations: bits, bytes, cuts, insertions, repeated pieces, and numbers of the header of safetensors, which say how much
memory to take.
"""

import json
import random
import resource
import shutil
import struct

import pytest
import torch
from report_record import FULL
from torch import nn

from unlearnkit import Importance
from unlearnkit.data import ByIndex
from unlearnkit.deletion.requests import KIND, Queue, Request
from unlearnkit.deletion.state import RECEIPT_FORMAT, Receipt
from unlearnkit.experiments.config import load_config
from unlearnkit.importance.provenance import Fingerprint
from unlearnkit.importance.store.store import ImportanceStore
from unlearnkit.models.checkpoint import load_checkpoint, model_state, save_checkpoint
from unlearnkit.reporting import read_record
from unlearnkit.unlearning.patch import Patch
from unlearnkit.utils.checksummed_json import read_sealed, write_sealed
from unlearnkit.utils.errors import StoreError, UnlearnKitError

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # of torch, before it raises

FEW, MANY = 40, 10_000
MIB = 1 << 20


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def importance():
    kind = Fingerprint(estimator="diagonal-fisher", unit="sample")
    totals = {n: p.detach().square() for n, p in network().named_parameters()}
    return Importance(totals=totals, count=3, samples=3, fingerprint=kind)


def make_importance(folder):
    importance().save(folder / "file")
    return folder / "file", lambda: Importance.load(folder / "file")


def make_checkpoint(folder):
    save_checkpoint(network(), folder / "file")
    return folder / "file", lambda: load_checkpoint(network(), folder / "file")


def make_patch(folder):
    before = {n: t.clone() for n, t in model_state(network()).items()}
    Patch.between(before, {n: t * 0.5 for n, t in before.items()}).save(folder / "file")
    return folder / "file", lambda: Patch.load(folder / "file")


def make_shard(folder):
    store = ImportanceStore.create(folder / "store")
    store.put("cat", importance())
    return next(store.folder.glob("*.safetensors")), store.total


def make_manifest(folder):
    store = ImportanceStore.create(folder / "store")
    store.put("cat", importance())
    return store.folder / "manifest.json", store.total


def make_receipt(folder):
    write_sealed(folder / "file", Receipt(number=1, previous="", time="now", outcome="started"), kind=RECEIPT_FORMAT)
    return folder / "file", lambda: read_sealed(folder / "file", Receipt, kind=RECEIPT_FORMAT)


def make_pickle(folder):
    torch.save(network().state_dict(), folder / "file.pt")
    return folder / "file.pt", lambda: load_checkpoint(network(), folder / "file.pt", allow_pickle=True)


def make_old_pickle(folder):
    torch.save(network().state_dict(), folder / "file.pt", _use_new_zipfile_serialization=False)
    return folder / "file.pt", lambda: load_checkpoint(network(), folder / "file.pt", allow_pickle=True)


def make_request(folder):
    write_sealed(folder / "file.json", Request(name="ticket", groups=("3",)), kind=KIND)
    return folder / "file.json", Queue(folder).waiting


def make_report(folder):
    (folder / "report.json").write_text(json.dumps(FULL.to_dict()))
    return folder / "report.json", lambda: read_record(folder).judgement()


def make_samples(folder):
    (folder / "ids").write_text("1\n2  # a comment\n300\n")
    return folder / "ids", lambda: ByIndex.from_file(folder / "ids")


SEALED = [make_importance, make_checkpoint, make_patch, make_shard, make_manifest, make_receipt, make_request]
MAKERS = [*SEALED, make_pickle, make_old_pickle, make_report, make_samples]


def mutated(good, rng):
    data = bytearray(good)
    start, length = rng.randrange(len(data)), rng.randrange(1, 9)
    kind = rng.randrange(8)
    if kind == 0:
        data[start] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[start : start + length] = rng.randbytes(length)
    elif kind == 2:
        del data[start:]
    elif kind == 3:
        data[start:start] = rng.randbytes(length)
    elif kind == 4:
        data[start:start] = data[max(0, start - 40) : start]
    elif kind == 5:
        del data[start : start + length]
    elif kind == 6:  # the length of the header, or any eight bytes: a huge number
        where = 0 if rng.random() < 0.5 else start
        data[where : where + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**40, 2**63, 2**64 - 1]))
    else:  # digits of the header: shapes and offsets
        digits = [i for i, byte in enumerate(data[:2000]) if chr(byte).isdigit()]
        for i in rng.sample(digits, min(len(digits), 3)):
            data[i] = ord(rng.choice("0123456789-"))
    return bytes(data)


def fuzz(make, folder, count, seed):
    """Load mutations of a file; return how many were refused. What has no digest may load with another content."""
    path, load = make(folder)
    load()
    good, refused = path.read_bytes(), 0
    rng = random.Random(f"{make.__name__} {seed}")
    for number in range(count):
        bad = mutated(good, rng)
        path.write_bytes(bad)
        try:
            load()
        except UnlearnKitError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of {make.__name__}: {error!r}\n{bad!r}") from error
    path.write_bytes(good)
    load()
    return refused


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_mutated_files_are_loaded_or_refused(make, tmp_path, record_property):
    assert fuzz(make, tmp_path, FEW, seed=0) > (FEW // 2 if make in SEALED else 0)
    record_property("tried", ("mutated files", FEW))


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_ten_thousand_mutated_files_without_crash_or_excess_memory(make, tmp_path, record_property):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = MANY // len(MAKERS) + 1
    assert fuzz(make, tmp_path, count, seed=1) > (count // 2 if make in SEALED else 0)
    record_property("tried", ("mutated files", count))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * MIB // 1024


@pytest.mark.parametrize("length", [2**63, 2**40, 10**9])
def test_header_with_tensors_larger_than_memory(tmp_path, length):
    for make in (make_importance, make_checkpoint, make_patch, make_shard):
        folder = tmp_path / make.__name__
        folder.mkdir()
        path, load = make(folder)
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
        with pytest.raises(StoreError):
            load()


@pytest.mark.parametrize("shape", [[10**12], [-1], [2**62, 4], [1] * 10_000])
def test_header_with_shapes_larger_than_the_data(tmp_path, shape):
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "file"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    for load in (Importance.load, Patch.load, lambda p: load_checkpoint(network(), p)):
        with pytest.raises(UnlearnKitError):
            load(path)


def test_folder_or_device_instead_of_a_file(tmp_path):
    for load in (Importance.load, Patch.load, lambda p: load_checkpoint(network(), p)):
        for path in (tmp_path, "/dev/null", tmp_path / "none"):
            with pytest.raises(StoreError):
                load(path)


@pytest.mark.parametrize("seed", range(20))
def test_a_changed_configuration_is_loaded_or_refused(seed, digits_toml, tmp_path):
    path = tmp_path / "changed.toml"

    def make_configuration(_):
        shutil.copy(digits_toml, path)
        return path, lambda: load_config(path)

    assert fuzz(make_configuration, tmp_path, 10, seed) > 0
