"""The store of importances: worked examples, algebra, refusals, and removal."""

import json
import subprocess
import sys
import threading
from unittest.mock import patch

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unlearnkit import ConfigurationError, Importance, MismatchError
from unlearnkit.importance.provenance import Fingerprint, Role
from unlearnkit.importance.store.files import Edit
from unlearnkit.importance.store.store import ImportanceStore, writing
from unlearnkit.models.parameters import digest
from unlearnkit.utils import checksummed_json as sealed
from unlearnkit.utils.errors import StoreError

KIND = Fingerprint(estimator="diagonal-fisher", unit="sample", precision="gradients float64, totals float64")


def importance(*values, count=2, kind=KIND, dtype=torch.float64):
    totals = {"a": torch.tensor(values, dtype=dtype), "b.weight": torch.tensor([[values[0]]], dtype=dtype)}
    return Importance(totals=totals, count=count, samples=count, fingerprint=kind)


@pytest.fixture
def store(tmp_path):
    made = ImportanceStore.create(tmp_path / "store", data="d1", versions={"torch": "1"})
    made.put("cat", importance(1.0, 2.0))
    made.put("dog", importance(4.0, 8.0, count=3))
    made.put("owl", importance(16.0, 32.0))
    return made


def values(found):
    return found.totals["a"].tolist(), found.count


def test_groups_total_and_rest(store):
    assert values(store.group("dog")) == ([4.0, 8.0], 3)
    assert values(store.total()) == ([21.0, 42.0], 7)
    assert values(store.rest(["dog"])) == ([17.0, 34.0], 4)
    assert values(store.groups(["cat", "owl", "cat"])) == ([17.0, 34.0], 4)
    assert store.keys == ("cat", "dog", "owl")
    assert [store.group("cat").role, store.total().role, store.rest(["cat"]).role] == [
        Role.FORGET,
        Role.FULL,
        Role.RETAIN,
    ]


def test_a_string_is_not_taken_for_keys_of_one_letter(store):
    store.put("c", importance(1.0, 1.0))
    for call in (store.groups, store.rest, store.remove):
        with pytest.raises(ConfigurationError, match=r"expected several names, saw 'c': write \['c'\]"):
            call("c")
    assert store.keys == ("c", "cat", "dog", "owl")


def test_stored_importances_merge_with_measured_ones(store):
    assert values(store.group("cat").merge(importance(1.0, 1.0))) == ([2.0, 3.0], 4)


def test_a_store_that_is_opened_again_is_the_same(store):
    again = ImportanceStore.open(store.folder)
    assert values(again.total()) == values(store.total())
    assert again.manifest == store.manifest
    again.verify()


@given(
    groups=st.lists(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), min_size=2, max_size=5),
    gone=st.integers(0, 4),
)
def test_retain_is_full_minus_forget_to_1e_12(tmp_path_factory, groups, gone):
    gone %= len(groups)
    with patch("os.fsync"):  # fsync takes most of the time and is not tested here
        _check_rest_and_remove(tmp_path_factory.mktemp("algebra") / "store", groups, gone)


def _check_rest_and_remove(folder, groups, gone):
    store = ImportanceStore.create(folder)
    for i, row in enumerate(groups):
        store.put(str(i), importance(*row))
    want = sum(torch.tensor(row, dtype=torch.float64) for i, row in enumerate(groups) if i != gone)
    torch.testing.assert_close(store.rest([str(gone)]).totals["a"], want, rtol=1e-12, atol=0)
    store.remove([str(gone)])
    torch.testing.assert_close(store.total().totals["a"], want, rtol=1e-12, atol=0)
    assert store.total().count == 2 * (len(groups) - 1)


def test_part_is_subtracted_from_its_group_and_the_total(store):
    lost = store.change(parts={"dog": importance(1.0, 8.0, count=1)})
    assert values(store.group("dog")) == ([3.0, 0.0], 2)
    assert values(store.total()) == ([20.0, 34.0], 6)
    assert [(c.name, c.entries, c.of) for c in lost] == [("a", 1, 2)]  # 8 − 8 has no digits left


SKETCH = attrs.evolve(KIND, estimator="sketched-fisher")


def sketched(error, count):
    return attrs.evolve(importance(count, 2.0 * count, count=count, kind=SKETCH), relative_error=error)


def test_errors_are_kept_added_and_lost_with_a_part(tmp_path):
    store = ImportanceStore.create(tmp_path / "store")
    for key, found in {"cat": sketched(0.4, 10), "dog": sketched(0.0, 30), "owl": sketched(0.1, 40)}.items():
        store.put(key, found)
    again = ImportanceStore.open(store.folder)
    assert [again.group(key).relative_error for key in again.keys] == [0.4, 0.0, 0.1]
    assert again.total().relative_error == pytest.approx((4 + 0 + 4) / 80)
    assert again.groups(["cat", "dog"]).relative_error == pytest.approx(0.1)
    assert again.rest(["cat"]).relative_error == pytest.approx(4 / 70)
    again.change(parts={"owl": sketched(0.1, 1)})
    assert again.group("owl").relative_error is None
    assert again.total().relative_error is None
    again.remove(["owl"])
    assert again.total().relative_error == pytest.approx(0.1)


def test_a_relative_error_that_is_not_known_makes_that_of_the_sum_unknown(tmp_path):
    store = ImportanceStore.create(tmp_path / "store")
    store.put("cat", attrs.evolve(importance(1.0, 2.0, kind=SKETCH), relative_error=None))
    store.put("dog", importance(3.0, 4.0, kind=SKETCH))
    assert store.group("dog").relative_error is not None
    assert store.group("cat").relative_error is store.total().relative_error is None


def test_cancellation_is_counted_where_digits_are_lost(tmp_path):
    store = ImportanceStore.create(tmp_path / "store")
    store.put("all", importance(1.0, 1.0 + 1e-15, count=100))
    lost = store.change(parts={"all": importance(0.5, 1.0, count=1)})
    assert [(c.name, c.entries) for c in lost] == [("a", 1)]
    assert bool((store.total().totals["a"] >= 0).all())


def test_invalid_part_is_refused_and_changes_nothing(store):
    before = store.manifest
    with pytest.raises(MismatchError, match="a: the part is larger than the whole by 1"):
        store.change(parts={"dog": importance(5.0, 1.0, count=1)})
    with pytest.raises(MismatchError, match="expected a part of its 3 terms, saw 3: remove the group instead"):
        store.change(parts={"dog": importance(1.0, 1.0, count=3)})
    assert store.manifest == before
    store.verify()


def remove_owl(store):
    store.remove(["owl"])


def take_out_of_owl(store):
    store.change(parts={"owl": importance(9.0, 9.0, count=1)})


def contents(store):
    return b"".join(path.read_bytes() for path in store.folder.iterdir())


@pytest.mark.parametrize("remove", [remove_owl, take_out_of_owl])
def test_removed_importance_is_in_no_file(store, remove):
    secret = torch.tensor([16.0, 32.0], dtype=torch.float64).numpy().tobytes()
    both = torch.tensor([21.0, 42.0], dtype=torch.float64).numpy().tobytes()
    assert secret in contents(store)
    assert both in contents(store)
    remove(store)
    assert secret not in contents(store)
    assert both not in contents(store)
    store.verify()


def test_float32_halves_the_files_and_rounds_each_total_once(tmp_path):
    store = ImportanceStore.create(tmp_path / "store", precision="float32")
    for i in range(8):
        store.put(str(i), importance(1 / 3 + i, 1e-9))
    want = sum(1 / 3 + i for i in range(8))
    found = store.total().totals["a"]
    assert found.dtype == torch.float32
    assert abs(float(found[0]) - want) <= 8 * 6e-8 * want
    assert store.rest(["0"]).totals["a"].dtype == torch.float64


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"estimator": "loss-free"}, "estimator: 'diagonal-fisher' against 'loss-free'"),
        ({"unit": "batch"}, "expected one term per sample, saw the unit 'batch'"),
        ({"model": "abc"}, "model: '' against 'abc'"),
    ],
)
def test_other_kinds_are_refused_by_name(store, changed, said):
    with pytest.raises(MismatchError, match=said):
        store.put("bee", importance(1.0, 1.0, kind=attrs.evolve(KIND, **changed)))
    assert "bee" not in store.keys


def test_other_shapes_and_bad_values_are_refused(store):
    with pytest.raises(MismatchError, match=r"a: expected shape \(2,\), saw \(3,\)"):
        store.put("bee", importance(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="a: expected importances ≥ 0"):
        store.put("bee", importance(1.0, -1.0))


def test_missing_and_duplicate_keys(store):
    with pytest.raises(StoreError, match="no group 'dgo'; did you mean 'dog'"):
        store.group("dgo")
    with pytest.raises(StoreError, match="no group"):
        store.rest(["cat", "elk"])
    with pytest.raises(StoreError, match="has a group 'cat' already"):
        store.put("cat", importance(1.0, 1.0))
    with pytest.raises(StoreError, match="expected at least one group"):
        store.groups([])
    store.remove(store.keys)
    with pytest.raises(StoreError, match="empty store"):
        store.total()


def test_non_empty_folder_is_left_unchanged(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="expected a new or empty folder"):
        ImportanceStore.create(tmp_path)
    with pytest.raises(StoreError, match=r"manifest.json: expected a file"):
        ImportanceStore.open(tmp_path)


# --- the model, and how old the importances are -----------------------------------------------------------------------


def test_edits_are_counted_and_only_the_edited_model_matches(tmp_path):
    model = nn.Linear(2, 1, bias=False)
    store = ImportanceStore.create(tmp_path / "store", data="d1")
    kind = attrs.evolve(KIND, model=digest(model))
    store.put("cat", Importance(totals={"weight": torch.ones(1, 2)}, count=1, samples=1, fingerprint=kind))
    store.check(model, data="d1")
    before = digest(model)
    with torch.no_grad():
        model.weight[0, 0] = 0
    with pytest.raises(MismatchError, match=f"model: expected the digest {before}, saw {digest(model)}"):
        store.check(model)
    store.change(edit=Edit(before=before, after=digest(model), fraction=0.5, request="r1"))
    stale = store.staleness()
    store.check(model)
    assert (stale.edits, stale.fraction, stale.due) == (1, 0.5, True)
    assert "measure them again" in stale.sentence()
    assert store.total().fingerprint.model == digest(model)
    with pytest.raises(MismatchError, match="data: expected the digest d1, saw d2"):
        store.check(model, data="d2")
    with pytest.raises(MismatchError, match="saw an edit of"):
        store.change(edit=Edit(before=before, after="x", fraction=0.1))
    store.forget_edits_after(before)
    assert store.staleness().edits == 0
    with pytest.raises(MismatchError, match="knows no model"):
        store.forget_edits_after("nobody")


# --- damage -----------------------------------------------------------------------------------------------------------


def test_any_flipped_byte_is_found(store):
    for path in sorted(store.folder.glob("*.safetensors")):
        good = path.read_bytes()
        for position in (0, 9, len(good) // 2, len(good) - 1):
            bad = bytearray(good)
            bad[position] ^= 1
            path.write_bytes(bad)
            with pytest.raises(StoreError, match="damaged or replaced"):
                store.verify()
        path.write_bytes(good)
    store.verify()


def test_a_manifest_that_was_changed_is_refused(store):
    path = store.folder / "manifest.json"
    good = path.read_text()
    for bad in (good.replace('"count": 2', '"count": 3', 1), good[:-20], "[]", "{}", "\x00", good.replace("d1", "d2")):
        path.write_text(bad)
        with pytest.raises(StoreError):
            store.total()
    path.write_text(good)
    store.verify()


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "0123456789abcdef.bin", "x/../y.safetensors"]
)
def test_path_outside_the_folder_is_refused_even_with_a_valid_digest(store, name, monkeypatch):
    path = store.folder / "manifest.json"
    content = json.loads(path.read_text())["content"]
    content["groups"]["cat"]["shards"][0]["file"] = name
    monkeypatch.setattr(sealed.cattrs, "unstructure", lambda _: content)
    path.write_text(sealed.seal(None, kind="unlearnkit-store-1"))
    monkeypatch.undo()
    with pytest.raises(StoreError, match="is damaged"):
        store.group("cat")


def test_symlink_instead_of_a_file_is_refused(store, tmp_path):
    path = next(store.folder.glob("*.safetensors"))
    path.rename(tmp_path / "elsewhere.safetensors")
    path.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(StoreError, match="symbolic link"):
        store.verify()


def test_a_missing_file_is_named(store):
    path = next(store.folder.glob("*.safetensors"))
    path.unlink()
    with pytest.raises(StoreError, match=path.name):
        store.verify()


def test_a_full_disk_leaves_the_old_state(store, monkeypatch):
    before, files = store.manifest, sorted(p.name for p in store.folder.iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unlearnkit.utils.safetensors.save_file", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.put("bee", importance(1.0, 1.0))
    with pytest.raises(StoreError, match="No space left on device"):
        store.remove(["cat"])
    monkeypatch.undo()
    assert store.manifest == before
    assert sorted(p.name for p in store.folder.iterdir()) == files
    store.verify()


# --- two at once ------------------------------------------------------------------------------------------------------

# Only the lock, without unlearnkit and torch, whose import takes seconds.
HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_writer_gets_an_error_and_a_killed_one_releases_the_lock(store):
    with writing(store.folder), pytest.raises(StoreError, match="another process is writing to the store"):
        store.remove(["cat"])
    lock = str(store.folder / "lock")
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="another process is writing to the store"):
            store.remove(["cat"])
        assert values(store.total()) == ([21.0, 42.0], 7)  # readers do not block
        other.kill()
    store.remove(["cat"])
    assert store.keys == ("dog", "owl")


def test_readers_never_see_a_partial_write(store):
    seen, failures, stop = set(), [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                seen.add(store.total().totals["a"][0].item())
            except Exception as error:  # noqa: BLE001 - whatever it is, the test fails with it
                failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(10):
        store.remove(["cat"])
        store.put("cat", importance(1.0, 2.0))
    stop.set()
    thread.join()
    assert failures == []
    assert seen <= {20.0, 21.0}


def test_next_writer_deletes_files_of_a_killed_one(store):
    left = store.folder / "00000000000000ff.safetensors"
    left.write_bytes(b"half")
    store.remove(["cat"])
    assert not left.exists()
