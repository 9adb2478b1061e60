"""Damaged input files of every command: one message, exit code 2, and an unchanged folder."""

import json

import file_damage as damage
import pytest
from cattrs import unstructure
from restricted_command import APPLY, FORGET, GO_ON, INSPECT, RESUME, ROLLBACK, RUN, VERIFY, everything
from typer.testing import CliRunner

from unlearnkit.cli.app import app
from unlearnkit.deletion import Receipt
from unlearnkit.deletion.state import Pending
from unlearnkit.importance.store.files import StoreManifest, file_digest
from unlearnkit.utils.checksummed_json import seal

HEX = "[0-9a-f]"
BARE = Receipt(number=3, previous="", time="now", outcome="purged")

# A file pattern, the commands that read the file, and the ways to damage it.
FILES = {
    "the model's checkpoint": ("original.safetensors", [RUN], damage.NAMED),
    "the checkpoint that a patch edits": ("original.safetensors", [APPLY], damage.NAMED),
    "a patch": ("edit", [APPLY, INSPECT], damage.NAMED),
    "a stored importance": ("out/ledger/importances-0/*.safetensors", [FORGET, VERIFY], damage.TENSORS),
    "a pass of a ledger that was interrupted": ("half/*/*.part", [GO_ON], damage.TENSORS - {damage.missing}),
    "a pass of a run that was interrupted": ("pass/*/*", [RESUME], damage.NAMED - {damage.missing}),
    "a ledger's model": (f"out/ledger/models/{HEX * 32}.safetensors", [FORGET, VERIFY, ROLLBACK], damage.TENSORS),
    "a ledger's patch": ("out/ledger/models/*.patch.safetensors", [VERIFY, ROLLBACK], damage.TENSORS),
    "the manifest of a store": ("out/ledger/importances-0/manifest.json", [FORGET, VERIFY], damage.TEXTS),
    "the state of a ledger": ("out/ledger/ledger.json", [FORGET, VERIFY, ROLLBACK], damage.TEXTS),
    "a receipt": ("out/ledger/receipts/000002.json", [FORGET, VERIFY, ROLLBACK], damage.TEXTS),
    "the salt": ("out/ledger/salt", [FORGET, VERIFY], damage.TEXTS),
    "a waiting request": ("out/ledger/queue/*.json", [FORGET], damage.TEXTS - {damage.missing}),
}
CASES = [(what, bad) for what, (_, _, all_bad) in FILES.items() for bad in sorted(all_bad, key=lambda f: f.__name__)]


@pytest.fixture(autouse=True)
def counted(record_property):
    record_property("tried", ("damaged files, by the way of the damage", 1))


def refused(folder, command):
    """Call a command that must fail; return its message."""
    before = everything(folder)
    result = CliRunner().invoke(app, list(command))
    said = " ".join(result.output.split())
    assert result.exit_code == 2, (command, said, result.exception)
    assert said.count("error: ") == 1
    assert everything(folder) == before
    return said


@pytest.mark.parametrize(("what", "bad"), CASES, ids=lambda part: getattr(part, "__name__", part))
def test_damaged_file_gives_one_message_and_changes_nothing(folder, what, bad):
    pattern, commands, _ = FILES[what]
    path = next(folder.glob(pattern))
    bad(path)
    for command in commands:
        said = refused(folder, command)
        whole = path.exists() and what != "the checkpoint that a patch edits"  # that one is named by its digest
        assert path.name.removesuffix(".safetensors") in said or not whole, said


# --- whoever damages a file may also write its digest anew ------------------------------------------------------------


def resealed(path, change):
    """Change the content of a checksummed file, and update its checksum."""
    plain = json.loads(path.read_text())
    change(plain["content"])
    path.write_text(seal(plain["content"], kind=plain["kind"]))


CLIMBING = {
    "the model in use": ("ledger.json", lambda c: c["current"].update(digest="../../../outside")),
    "the model that a patch leads to": ("ledger.json", lambda c: c["base"].update(through="../../../outside")),
    "the importances": ("ledger.json", lambda c: c.update(store="../importances-0")),
    "a part to be taken out": (
        "ledger.json",
        lambda c: c.update(pending=unstructure(Pending(receipt=BARE)) | {"parts": {"3": "../../../outside"}}),
    ),
    "a stored importance": (
        "importances-0/manifest.json",
        lambda c: c["total"]["shards"][0].update(file="../../../outside.safetensors"),
    ),
    "an absolute path": (
        "importances-0/manifest.json",
        lambda c: c["total"]["shards"][0].update(file="/etc/0123456789abcdef.safetensors"),
    ),
}


@pytest.mark.parametrize("what", CLIMBING)
def test_path_outside_the_folder_is_refused(folder, what):
    name, change = CLIMBING[what]
    resealed(folder / "out" / "ledger" / name, change)
    for command in (FORGET, VERIFY, ROLLBACK)[: 3 if name == "ledger.json" else 2]:
        said = refused(folder, command)
        assert "expected a name as" in said or "expected a shard's name" in said


@pytest.mark.parametrize("name", ["models", "receipts", "queue", "pending", "importances-0"])
def test_symlinked_folder_is_refused(folder, tmp_path, name):
    (folder / "out" / "ledger" / name).rename(tmp_path / "elsewhere")
    (folder / "out" / "ledger" / name).symlink_to(tmp_path / "elsewhere")
    before = everything(tmp_path / "elsewhere")
    for command in (FORGET, VERIFY, ROLLBACK, ("purge", "ledger.toml", "-q")):
        assert f"{name}: expected a folder, saw a link" in refused(folder, command)
    assert everything(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("bad", [damage.wrong_dtype, damage.extra_tensor, damage.missing_tensor, damage.lying_header])
def test_importance_of_wrong_shape_with_a_valid_digest(folder, bad):
    store = folder / "out" / "ledger" / "importances-0"
    shard = store / StoreManifest.read(store).total.shards[0].file
    bad(shard)
    resealed(store / "manifest.json", lambda c: c["total"]["shards"][0].update(digest=file_digest(shard)))
    refused(folder, FORGET)


@pytest.mark.parametrize("bad", [damage.wrong_dtype, damage.extra_tensor, damage.missing_tensor, damage.lying_header])
def test_model_of_wrong_shape_with_a_valid_digest(folder, bad):
    state = folder / "out" / "ledger" / "ledger.json"
    path = next(folder.glob(FILES["a ledger's model"][0]))
    bad(path)
    resealed(state, lambda c: c["current"].update(file=file_digest(path)))
    for command in (FORGET, VERIFY, ROLLBACK):
        refused(folder, command)


def test_undamaged_files_are_accepted(folder):
    for command in (VERIFY, INSPECT, APPLY, RESUME, GO_ON, ROLLBACK, VERIFY):
        result = CliRunner().invoke(app, list(command))
        assert result.exit_code == 0, (command, result.output, result.exception)


def test_file_named_by_the_user_may_be_a_symlink(folder):
    for name in ("original.safetensors", "edit"):
        (folder / name).rename(folder / f"real-{name}")
        (folder / name).symlink_to(folder / f"real-{name}")
    assert CliRunner().invoke(app, list(APPLY)).exit_code == 0
