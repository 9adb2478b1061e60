"""What ``verify-receipts`` finds, the salt in another place, and names that try to look like output."""

import shutil

import attrs
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from unlearnkit.cli.app import app
from unlearnkit.deletion import Ledger, purge, rollback, verify
from unlearnkit.importance import ImportanceStore
from unlearnkit.utils.checksummed_json import seal_digest, write_sealed
from unlearnkit.utils.errors import ConfigurationError, StoreError, UnlearnKitWarning


def call(*arguments):
    done = CliRunner().invoke(app, [*arguments])
    return done.exit_code, done.output


def forget(deletion, name, **what):
    deletion.ask(name, **what)
    return deletion.work()


def test_digest_kept_elsewhere(load):
    kept = load().ledger.receipts()[-1].digest
    forget(load(), "first", groups=["ant"])
    last = load().ledger.receipts()[-1].digest
    for digest, number in ((kept, 1), (last, 2)):
        code, said = call("verify-receipts", "small.toml", "--head", digest)
        assert code == 0, said
        assert f"receipts 1 to {number} are as they were when the digest of receipt {number} was kept" in said
    for other in ("0" * 64, last[:-1], "x"):
        code, said = call("verify-receipts", "small.toml", "--head", other)
        assert code == 2
        assert "receipts were rewritten or removed, or the digest is of another ledger" in " ".join(said.split())


def test_a_ledger_rewritten_as_a_whole_is_found_by_the_digest_alone(load):
    """What the owner of the folder can do: every receipt anew, with digests that fit."""
    receipt = forget(load(), "first", groups=["ant"])
    ledger = load().ledger
    state, folder = ledger.state, ledger.folder / "receipts"
    another = attrs.evolve(receipt, requests=("another",))
    write_sealed(folder / "000002.json", another, kind="unlearnkit-receipt-3")
    state = attrs.evolve(state, head=seal_digest(another))
    write_sealed(folder.parent / "ledger.json", state, kind="unlearnkit-ledger-3")
    verify(ledger)
    with pytest.raises(StoreError, match="saw 2 others: receipts were rewritten"):
        verify(ledger, head=receipt.digest)


STRAY = {
    "models/copy.safetensors": False,
    f"models/{'a' * 32}.safetensors": True,
    f"importances-0/{'a' * 16}.safetensors": True,
    f"importances-0/{'a' * 16}.part": True,
    f"importances-4/{'a' * 16}.safetensors": True,
    f"pending/{'a' * 16}.safetensors": True,
    f"pending/unlearnkit-x/{'a' * 16}.safetensors": True,
    f".{'a' * 16}.tmp": True,
    f"receipts/.{'a' * 16}.tmp": True,
    "notes.txt": False,
    "importances-4/notes.txt": False,
}


@pytest.mark.parametrize("name", STRAY)
def test_file_that_nothing_refers_to_is_a_fault_and_is_swept_if_the_ledger_made_it(load, name):
    path = load().ledger.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("importance")
    with pytest.raises(StoreError, match=f"nothing refers to {name}: the next command"):
        verify(load().ledger)
    with FileLock(load().ledger.folder / "lock"), pytest.raises(StoreError, match="another process is working"):
        verify(load().ledger)  # it may be that one's
    if STRAY[name]:
        with pytest.warns(UnlearnKitWarning, match=f"interrupted: 1 files that nothing refers to .* such as {name}"):
            assert load().work() is None
        assert not path.exists()
        verify(load().ledger)
    else:
        assert load().work() is None
        assert path.read_text() == "importance"


def test_change_by_another_process_is_no_fault(load):
    deletion = load()
    path = deletion.ledger.folder / "receipts" / "000001.json"
    path.rename(path.with_name("moved"))
    with FileLock(deletion.ledger.folder / "lock"), pytest.raises(StoreError, match="another process is working on"):
        verify(deletion.ledger)
    with pytest.raises(StoreError, match="expected 1 receipts"):
        verify(deletion.ledger)


def test_interrupted_refresh_is_kept_until_the_model_changes(load, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ImportanceStore, "put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load().refresh()
    store = load().ledger.folder / "importances-1"
    assert list(store.glob("*.part"))
    verify(load().ledger)
    assert load().work() is None
    assert list(store.glob("*.part"))
    forget(load(), "first", groups=["ant"])
    assert not store.exists()
    verify(load().ledger)


def test_decision_that_is_not_carried_out_is_said(load, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_change_store", lambda *_: (_ for _ in ()).throw(StoreError("disk full")))
        load().ask("first", groups=["ant"])
        with pytest.raises(StoreError, match="disk full"):
            load().work()
    code, said = call("verify-receipts", "small.toml")
    assert code == 0
    assert "not finished: receipt 2" in said
    code, said = call("forget", "small.toml", "-q", "-r", "first", "-g", "ant")  # repeated
    assert code == 0
    said = " ".join(said.split())
    assert "a command was interrupted: what it had decided was finished now, receipt 2" in said
    assert "Receipt 2 (first): 6 samples were forgotten." in said
    assert len(load().ledger.receipts()) == 2


@pytest.mark.parametrize("act", [rollback, purge])
def test_repeating_an_interrupted_command_does_not_start_another(load, monkeypatch, act):
    keep = "deletion.keep=2"
    for group in ("ant", "bee"):
        forget(load(keep), group, groups=[group])
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_change_store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            act(load(keep))
    with pytest.warns(UnlearnKitWarning, match="finished now, receipt 4"):
        assert act(load(keep)).number == 4
    assert act is purge or act(load(keep)).number == 5
    verify(load().ledger)


# --- the salt ---------------------------------------------------------------------------------------------------------


def test_salt_that_is_named_inside_the_folder(load):
    setting = "deletion.salt='out/ledger/salt'"
    load().ledger.folder.mkdir(parents=True, exist_ok=True)
    other = [setting, "deletion.folder='out/other'", "deletion.salt='out/other/salt'"]
    verify(load(setting).ledger)
    load(*other).ledger.folder.mkdir()
    load(*other).start()
    forget(load(*other), "first", samples=[3])
    verify(load(*other).ledger)


def test_salt_outside_the_folder(load, tmp_path):
    salt, settings = tmp_path / "vault" / "salt", ["deletion.salt='vault/salt'", "deletion.folder='other'"]
    with pytest.raises(StoreError, match="cannot make a ledger"):
        load(*settings).start()
    salt.parent.mkdir()
    load(*settings).start()
    assert salt.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "other" / "salt").exists()
    receipt = forget(load(*settings), "first", samples=[3])
    assert list(receipt.samples) == load(*settings).hashes([3])
    assert receipt.samples[0] not in load().hashes(range(18))
    verify(load(*settings).ledger)
    known = salt.read_bytes()
    salt.write_bytes(known[::-1])
    for act in (lambda: verify(load(*settings).ledger), lambda: load(*settings).ask("second", samples=[4])):
        with pytest.raises(StoreError, match="expected the salt of this ledger, saw another"):
            act()
    salt.unlink()
    arguments = [word for setting in settings for word in ("-s", setting)]
    code, said = call("verify-receipts", "small.toml", *arguments)
    assert code == 0, said
    assert "not checked: the salt, which is not in vault/salt" in said
    shutil.copy(load().ledger.folder / "salt", tmp_path / "other" / "salt")
    with pytest.raises(StoreError, match="nothing refers to salt"):
        verify(load(*settings).ledger)


@pytest.mark.parametrize(("size", "good"), [(0, True), (15, False), (16, True), (64, True), (65, False)])
def test_salt_of_the_users_own(load, tmp_path, size, good):
    (tmp_path / "mine").write_bytes(b"s" * size)
    ledger = load("deletion.salt='mine'", "deletion.folder='other'")
    if good:
        ledger.start()
        assert (tmp_path / "mine").stat().st_size == (size or 32)
        assert forget(ledger, "first", samples=[3]).outcome == "forgotten"
    else:
        with pytest.raises(StoreError, match=f"expected 16 to 64 bytes of salt, saw {size}"):
            ledger.start()


# --- names ------------------------------------------------------------------------------------------------------------

FORGED = ["a\nReceipt 9 (b): 5 samples were forgotten.", "a\rb", "a\x1b[2J", "a\0b", "a\u2028b", "a\u202eb", "a\udcffb"]


@pytest.mark.parametrize("name", FORGED)
def test_names_with_control_characters_are_refused(load, name):
    with pytest.raises(ConfigurationError, match="expected a name without control characters"):
        load().ask(name, samples=[1])
    code, said = call("forget", "small.toml", "-q", "-r", name, "-g", "ant")
    assert code == 2
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert load().ledger.queue.waiting() == []


def test_names_cannot_be_taken_for_another_part_of_a_line(load):
    with pytest.raises(ConfigurationError, match="expected a name of at most 200 letters, saw 201"):
        load().ask("x" * 201, samples=[1])
    assert load().ledger.queue.waiting() == []
    code, said = call("forget", "small.toml", "-q", "-r", "a): 9 samples were forgotten. (b", "-g", "ant")
    assert code == 0
    assert "Receipt 2 ('a): 9 samples were forgotten. (b'): 6 samples were forgotten." in said


@pytest.mark.parametrize("option", ["-g", "--withdraw", "--samples", "-s"])
@pytest.mark.parametrize("text", FORGED)
def test_nothing_typed_begins_a_line_of_output(load, option, text):
    code, said = call("forget", "small.toml", "-q", option, text)
    assert code == 2
    assert not any(line.startswith("Receipt") for line in said.splitlines())
    assert said.startswith(("error: ", "Usage: "))  # click refuses some itself


def test_purge_says_what_it_does_not_reach(load):
    code, said = call("purge", "small.toml", "-q")
    assert code == 0
    assert "not reached: the original checkpoint original.safetensors, copies and patches elsewhere, backups" in said
