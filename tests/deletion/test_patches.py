"""Earlier models kept as patches: smaller files, with the guarantees of full models."""

import shutil

import attrs
import pytest
import torch
from typer.testing import CliRunner

from unlearnkit.cli.app import app
from unlearnkit.deletion import Deletion, purge, rollback, verify
from unlearnkit.deletion.state import write_state
from unlearnkit.experiments.config import load_config
from unlearnkit.importance.store.files import file_digest
from unlearnkit.models.parameters import digest
from unlearnkit.unlearning.patch import Patch
from unlearnkit.utils.errors import ConfigurationError, StoreError, UnlearnKitWarning


@pytest.fixture
def make(ledger_toml):
    """Makes a deletion that forgets few samples and keeps a given number of patches."""

    def make(*settings):
        mine = ["deletion.method=gentle", "deletion.keep_as='patch'", "deletion.budget=1.0"]
        mine += ["method.gentle.options={alpha=8.0}", *settings]
        return Deletion.load(load_config(ledger_toml, mine))

    return make


def forget(deletion, *samples):
    deletion.ask(f"ticket {samples}", samples=samples)
    receipt = deletion.work()
    assert receipt.outcome == "forgotten"
    assert receipt.model_before != receipt.model_after
    return receipt


def models(deletion):
    return {path.name: path for path in (deletion.ledger.folder / "models").iterdir()}


def test_ledger_keeps_one_model_and_a_patch(make):
    deletion = make()
    before = deletion.ledger.state.current
    receipt = forget(deletion, 4, 5)
    found = models(deletion)
    patch = f"{before.digest}.patch.safetensors"
    assert set(found) == {f"{receipt.model_after}.safetensors", patch}  # the patch leads to the measured model
    assert receipt.patch_file == file_digest(found[patch])
    kept = Patch.load(found[patch])
    assert kept.changed == receipt.edit["changed"]
    assert kept.reversible
    assert found[patch].stat().st_size < found[f"{receipt.model_after}.safetensors"].stat().st_size
    verify(deletion.ledger)


@pytest.mark.parametrize("keep", [2, 5])
def test_rollback_restores_every_bit(make, keep):
    deletion = make(f"deletion.keep={keep}")
    states = [deletion.ledger.state.current]
    for samples in ((4, 5), (6,)):
        forget(deletion, *samples)
        states.append(deletion.ledger.state.current)
    assert deletion.ledger.store.staleness().edits == 2
    for number, state in enumerate((states[1], states[0]), start=1):
        assert rollback(deletion).model_after == state.digest
        assert deletion.ledger.state.current == state  # the file too, to the last byte
        assert digest(deletion.model(state)) == state.digest
        assert deletion.ledger.store.staleness().edits == 2 - number
        verify(deletion.ledger)
    assert set(models(deletion)) == {f"{states[0].digest}.safetensors"}
    with pytest.raises(ConfigurationError, match="expected an earlier model to put back"):
        rollback(deletion)


def test_measured_model_is_rebuilt_from_patches_that_rollback_cannot_use(make):
    deletion = make("deletion.keep=1", "method.gentle.options.alpha=2.0")
    base = deletion.ledger.state.base.digest
    for samples in ((4, 5), (6,), tuple(range(30, 40))):  # each is measured on the model of the start
        forget(deletion, *samples)
    state = deletion.ledger.state
    assert len(state.kept) == 1
    assert [len(models(deletion)), len(state.models)] == [4, 4]
    assert digest(deletion.model(state.base)) == base
    rollback(deletion)
    with pytest.raises(ConfigurationError, match="expected an earlier model to put back"):
        rollback(deletion)
    deletion.refresh()  # then it is needed no more
    assert set(models(deletion)) == {f"{deletion.ledger.state.current.digest}.safetensors"}
    verify(deletion.ledger)


def test_keep_0_allows_no_rollback(make):
    deletion = make("deletion.keep=0")
    forget(deletion, 4, 5)
    forget(deletion, 6)
    assert deletion.ledger.state.kept == ()
    with pytest.raises(ConfigurationError, match="expected an earlier model to put back"):
        rollback(deletion)


def test_purge_deletes_the_patch_files(make):
    deletion = make("deletion.keep=2")
    forget(deletion, 4, 5)
    old = Patch.load(next(path for name, path in models(deletion).items() if "patch" in name))
    values = [one.old for one in old.tensors.values()]
    forget(deletion, 6)
    assert purge(deletion).reason == "2 earlier models"
    assert set(models(deletion)) == {f"{deletion.ledger.state.current.digest}.safetensors"}
    left = b"".join(p.read_bytes() for p in deletion.ledger.folder.rglob("*") if p.is_file())
    runs = [v[i : i + 4].numpy().tobytes() for v in values for i in range(len(v) - 3)]
    assert runs
    assert not any(run in left for run in runs)  # four old values in a row are nowhere
    verify(deletion.ledger)


@pytest.mark.parametrize("keep_as", ["smaller", "model"])
def test_after_a_purge_the_model_before_an_edit_is_kept_for_rollback_alone(make, keep_as):
    """The importances were measured on a model that was purged, so nothing else needs the one before the edit."""
    deletion = make("deletion.keep=0", f"deletion.keep_as={keep_as}", "method.gentle.options.alpha=2.0")
    forget(deletion, 4, 5)
    purge(deletion)
    deletion.ask("ticket-2", groups=["5"])
    assert deletion.work().outcome == "forgotten"
    assert set(models(deletion)) == {f"{deletion.ledger.state.current.digest}.safetensors"}
    verify(deletion.ledger)
    keeping = make("deletion.keep=1", f"deletion.keep_as={keep_as}", "method.gentle.options.alpha=2.0")
    before = keeping.ledger.state.current
    keeping.ask("ticket-3", groups=["6"])
    keeping.work()
    assert len(models(keeping)) == 2
    assert rollback(keeping).model_after == before.digest
    assert set(models(keeping)) == {f"{before.digest}.safetensors"}
    verify(keeping.ledger)


def test_purge_that_cannot_delete_is_an_error(make, monkeypatch):
    deletion = make()
    forget(deletion, 4, 5)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError("no")))
        with pytest.raises(StoreError, match=r"cannot delete [0-9a-f]{32}.patch.safetensors: nothing refers to them"):
            purge(deletion)
    with pytest.warns(UnlearnKitWarning, match="1 files that nothing refers to were deleted"), deletion.ledger.locked():
        assert len(models(deletion)) == 1  # as the next command does first


def test_rollback_replaces_a_damaged_model_and_checks_the_earlier_one(make):
    deletion = make("deletion.keep_as='model'")
    receipt = forget(deletion, 4, 5)
    now, before = (models(deletion)[f"{name}.safetensors"] for name in (receipt.model_after, receipt.model_before))
    now.write_bytes(b"damaged")
    good = before.read_bytes()
    before.write_bytes(good[:-1])
    with pytest.raises(StoreError, match="the model was changed"):
        rollback(deletion)
    before.write_bytes(good)
    assert rollback(deletion).model_after == receipt.model_before
    verify(deletion.ledger)


@pytest.mark.parametrize(("keep_as", "whole"), [("model", True), ("smaller", False)])
def test_a_small_edit(make, keep_as, whole):
    deletion = make(f"deletion.keep_as='{keep_as}'")
    receipt = forget(deletion, 4, 5)
    assert (receipt.patch_file == "") == whole
    assert any("patch" in name for name in models(deletion)) == (not whole)
    before = receipt.model_before
    assert rollback(deletion).model_after == before
    verify(deletion.ledger)


def test_an_edit_of_most_weights_keeps_the_whole_model(make):
    deletion = make("deletion.keep_as='smaller'", "deletion.method='prune'")
    receipt = forget(deletion, *range(30))
    assert receipt.edit["fraction"] > 0.2
    assert receipt.patch_file == ""
    assert rollback(deletion).model_after == receipt.model_before
    verify(deletion.ledger)


def test_an_edit_that_changes_nothing(make):
    deletion = make("method.gentle.options.alpha=1e30", "deletion.keep_as='patch'")
    deletion.ask("ticket", samples=[4])
    state = deletion.ledger.state.current
    with pytest.warns(UnlearnKitWarning, match="can select nothing"):
        receipt = deletion.work()
    assert (receipt.outcome, receipt.model_after, receipt.patch_file) == ("rolled back", state.digest, "")
    assert "ssd changed nothing" in receipt.reason
    assert deletion.ledger.state.current == state
    verify(deletion.ledger)
    deletion.ask("ticket again", samples=[4])


@pytest.fixture
def patched(make):
    deletion = make()
    receipt = forget(deletion, 4, 5)
    return deletion, models(deletion)[f"{receipt.model_before}.patch.safetensors"]


def test_patch_for_another_model_is_detected_before_any_change(patched):
    deletion, path = patched
    state = deletion.ledger.state
    Patch.between({"w": torch.zeros(2)}, {"w": torch.ones(2)}).save(path)
    for act in (lambda: verify(deletion.ledger), lambda: rollback(deletion)):
        with pytest.raises(StoreError, match="expected the digest of what was written"):
            act()
    assert deletion.ledger.state == state
    path.unlink()
    for act in (lambda: verify(deletion.ledger), lambda: rollback(deletion)):
        with pytest.raises(StoreError, match="expected a model of the ledger, saw none"):
            act()
    assert deletion.ledger.state == state


def test_patch_without_a_receipt_is_detected(patched):
    """The patch and its digest in the ledger's state were replaced, but the receipts were not."""
    deletion, path = patched
    good = Patch.load(path)
    Patch(tensors=good.tensors, before=good.before, after=good.after, about={"changed": True}).save(path)
    known = deletion.ledger.state
    kept = attrs.evolve(known.kept[0], file=file_digest(path))
    write_state(deletion.ledger.folder, attrs.evolve(known, kept=(kept,), base=kept))
    with pytest.raises(StoreError, match="no receipt says that the file"):
        verify(deletion.ledger)


def test_the_patch_edits_a_copy_of_the_model_elsewhere(patched, tmp_path, trained_checkpoint):
    deletion, path = patched
    shutil.copy(trained_checkpoint, "elsewhere.safetensors")
    done = CliRunner().invoke(app, ["patch", "apply", str(path), "elsewhere.safetensors", "edited.safetensors"])
    assert done.exit_code == 0, done.output
    patch = Patch.load(path)
    assert patch.about["requests"] == ["ticket (4, 5)"]
    state = deletion.ledger.state
    assert digest(deletion.model(state.current)) == state.current.digest
    back = CliRunner().invoke(app, ["patch", "revert", str(path), "edited.safetensors", "again.safetensors"])
    assert back.exit_code == 0, back.output
