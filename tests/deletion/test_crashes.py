"""SIGKILL at any moment of an importance pass, an edit, a store write, a receipt: nothing is lost or incomplete."""

import random
import shutil
import signal
import time
from unittest.mock import Mock

import forked_process as forked
import pytest
import torch
from kill_during_work import work

from unlearnkit.deletion import Ledger, Receipt, verify
from unlearnkit.models.parameters import digest
from unlearnkit.models.zoo import small_cnn
from unlearnkit.utils.errors import UnlearnKitWarning

SHORT = {"requests": ("ticket-1", "ticket-2"), "refresh": False}


@pytest.fixture(autouse=True)
def counted(record_property):
    record_property("tried", ("kills of a sequence of ledger commands, at random moments", 1))


def run(config, folder, *arguments, **options):
    return forked.run(work, str(config), str(folder), *arguments, **options)


@pytest.fixture(scope="module")
def whole(started, tmp_path_factory):
    """An uninterrupted run: its ledger, its number of file-system events, and its seconds."""
    return uninterrupted(started, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def short(started, tmp_path_factory):
    """The same of two requests, without a second measurement."""
    return uninterrupted(started, tmp_path_factory.mktemp("short"), **SHORT)


def uninterrupted(started, root, **scenario):
    start = time.perf_counter()
    assert run(started / "ledger.toml", root / "ledger", None, str(root / "events"), **scenario) == 0
    return Ledger(root / "ledger"), int((root / "events").read_text()), time.perf_counter() - start


def check(ledger, whole):
    receipts = verify(ledger)
    expected = verify(whole)
    assert [(r.outcome, r.requests, r.groups) for r in receipts] == [
        (r.outcome, r.requests, r.groups) for r in expected
    ]
    assert [r.model_after for r in receipts] == [r.model_after for r in expected]
    assert ledger.store.keys == whole.store.keys
    for key in whole.store.keys:
        for name, total in whole.store.group(key).totals.items():
            assert torch.equal(total, ledger.store.group(key).totals[name]), (key, name)
    assert [p.name for p in files(ledger, "models")] == [p.name for p in files(whole, "models")]
    assert [m.digest for m in ledger.state.kept] == [m.digest for m in whole.state.kept]
    for kept in ledger.state.models:
        assert digest(ledger.models.load(ledger.state.path_to(kept), small_cnn(width=4))) == kept.digest
    names = {p.name for p in ledger.folder.rglob("*") if p.is_file()}
    left = {n for n in names if n.endswith((".tmp", ".part"))}
    assert left == set()


def files(ledger, name):
    return sorted((ledger.folder / name).iterdir())


def interrupted(started, folder, whole, *, kill_at=None, kill_after=None, **scenario):
    code = run(started / "ledger.toml", folder, kill_at, kill_after=kill_after, **scenario)
    assert code in {0, -signal.SIGKILL}
    again = run(started / "ledger.toml", folder, **scenario)
    assert again == 0
    check(Ledger(folder), whole)
    return code


@pytest.mark.parametrize("part", range(12))
def test_killed_at_a_file_system_event(started, tmp_path, short, part):
    ledger, events, _ = short
    kill_at = random.Random(part).randrange(part * events // 12, (part + 1) * events // 12) + 1
    assert interrupted(started, tmp_path / "ledger", ledger, kill_at=kill_at, **SHORT) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(140))
def test_killed_at_many_file_system_events(started, tmp_path, whole, seed):
    ledger, events, _ = whole
    kill_at = random.Random(1000 + seed).randrange(1, events + 1)
    assert interrupted(started, tmp_path / "ledger", ledger, kill_at=kill_at) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_killed_at_any_time(started, tmp_path, whole, seed):
    ledger, _, seconds = whole
    interrupted(started, tmp_path / "ledger", ledger, kill_after=random.Random(seed).uniform(0.0, seconds))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_again_and_again(started, tmp_path, whole, seed):
    ledger, events, _ = whole
    rng = random.Random(seed)
    for _ in range(5):
        run(started / "ledger.toml", tmp_path / "ledger", rng.randrange(1, events + 1))
    assert run(started / "ledger.toml", tmp_path / "ledger") == 0
    check(Ledger(tmp_path / "ledger"), ledger)


def test_a_start_that_was_killed_before_its_receipt_goes_on(load, monkeypatch):
    shutil.rmtree(load().ledger.folder)
    with monkeypatch.context() as patch:
        patch.setattr(Receipt, "write", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load().start()
    assert not list((load().ledger.folder / "receipts").iterdir())
    with pytest.warns(UnlearnKitWarning, match="what it had decided was finished now, receipt 1"):
        assert load().start().outcome == "started"
    verify(load().ledger)
