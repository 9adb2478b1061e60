"""A ledger of deletion requests: the model in use, its importances, the queue, and a receipt for every change."""

import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import final

import attrs
from filelock import FileLock, Timeout
from torch import nn

from unlearnkit.deletion.requests import Queue
from unlearnkit.deletion.state import FILE, FORMAT, Models, Pending, Receipt, State, read_receipts, write_state
from unlearnkit.experiments.provenance import versions
from unlearnkit.importance import Importance, ImportanceStore
from unlearnkit.utils.checksummed_json import read_sealed
from unlearnkit.utils.errors import StoreError, UnlearnKitError
from unlearnkit.utils.files import atomic_write

_SALT = "salt"
_MODELS = "models"
_PENDING = "pending"
_QUEUE = "queue"
_RECEIPTS = "receipts"


@final
@attrs.frozen
class Ledger:
    """A folder that holds the model in use, its importances, waiting requests and the receipts.

    Every change is first written to ``ledger.json``, atomically, and then carried out; the first to open a ledger after
    a crash carries out what is left.
    """

    folder: Path = attrs.field(converter=Path)

    @classmethod
    def start(cls, folder: str | Path, model: nn.Module, *, receipt: Callable[[State], Receipt]) -> "Ledger":
        """Make a ledger with a trained model and without importances."""
        ledger = cls(folder)
        if (ledger.folder / FILE).exists():
            raise StoreError(f"{folder}: there is a ledger already: choose another folder")
        try:
            for name in (_RECEIPTS, _MODELS, _PENDING, _QUEUE):
                (ledger.folder / name).mkdir(parents=True, exist_ok=True)
            salt = ledger._make_salt()
        except OSError as error:
            raise StoreError(f"cannot make a ledger in {folder}: {error}") from error
        kept = ledger.models.put(model)
        state = State(current=kept, base=kept, salt=salt)
        state = attrs.evolve(state, pending=Pending(receipt=receipt(state)))
        ledger.new_store(state.store)
        write_state(ledger.folder, state)
        with ledger.locked():
            return ledger

    @property
    def state(self) -> State:
        return read_sealed(self.folder / FILE, State, kind=FORMAT)

    def receipts(self) -> list[Receipt]:
        """Read all receipts in order, and check them against each other and against the ledger's state."""
        state, receipts = self.state, read_receipts(self.folder / _RECEIPTS)
        done = len(receipts) - (1 if state.pending and receipts and receipts[-1] == state.pending.receipt else 0)
        last = receipts[done - 1].digest if done else ""
        if (state.receipts, state.head) != (done, last):
            raise StoreError(
                f"{self.folder / _RECEIPTS}: expected {state.receipts} receipts, the last with the digest "
                f"{state.head}, saw {done}, the last with {last}: receipts were added or removed"
            )
        return receipts

    @property
    def models(self) -> Models:
        return Models(self.folder / _MODELS)

    @property
    def queue(self) -> Queue:
        return Queue(self.folder / _QUEUE)

    @property
    def store(self) -> ImportanceStore:
        return ImportanceStore.open(self.folder / self.state.store)

    @contextmanager
    def locked(self) -> Iterator[State]:
        """Lock the ledger, finish what a crash has left, and yield its state."""
        self.check_folders()  # says that there is no ledger, before a lock file makes a folder look like one
        try:
            with FileLock(self.folder / "lock", timeout=0):
                self.finish()
                yield self.state
        except Timeout as error:
            raise StoreError(f"another process is working on the ledger {self.folder}: wait, and try again") from error
        except OSError as error:
            raise StoreError(f"cannot write to the ledger {self.folder}: {error}") from error

    def check_folders(self) -> None:
        """Refuse a ledger with a folder that is missing or a link: files in its folders may be deleted."""
        for name in (_RECEIPTS, _MODELS, _PENDING, _QUEUE, self.state.store):
            path = self.folder / name
            if path.is_symlink() or not path.is_dir():
                raise StoreError(f"{path}: expected a folder, saw {'a link' if path.is_symlink() else 'none'}")

    def hashes(self, samples: Iterable[int]) -> list[str]:
        """Hash the numbers of training samples with the ledger's salt, without which they cannot be read back."""
        path = self.folder / _SALT
        try:
            salt = b"" if path.is_symlink() else path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: cannot read the salt: {error}") from error
        if hashlib.blake2b(salt).hexdigest() != self.state.salt:
            raise StoreError(f"{path}: expected the salt of this ledger, saw another, or a link: it was changed")
        return [hashlib.blake2b(str(int(i)).encode(), key=salt, digest_size=16).hexdigest() for i in samples]

    def forgotten(self) -> frozenset[str]:
        """Return the hashes of all forgotten samples: those of the receipts, without those that were put back."""
        forgotten: set[str] = set()
        for receipt in self.receipts():
            if receipt.outcome == "forgotten":
                forgotten.update(receipt.samples)
            elif receipt.outcome == "restored":
                forgotten.difference_update(receipt.samples)
        return frozenset(forgotten)

    def new_store(self, name: str) -> ImportanceStore:
        """Make an empty store of importances, or open one whose filling was interrupted."""
        folder = self.folder / name
        if (folder / "manifest.json").exists():
            return ImportanceStore.open(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return ImportanceStore.create(folder, versions=versions())

    def commit(self, state: State, pending: Pending, parts: Iterable[tuple[str, Importance]] = ()) -> None:
        """Write a new state with what is to be done, and do it."""
        files = {}
        for key, part in parts:
            files[key] = f"{secrets.token_hex(8)}.safetensors"
            part.save(self.folder / _PENDING / files[key])
        write_state(self.folder, attrs.evolve(state, pending=attrs.evolve(pending, parts=files)))
        self.finish()

    def finish(self) -> None:
        """Do what is decided and not done yet; the ledger must be locked."""
        state = self.state
        if state.pending is None:
            self._delete_unreferenced(state)
            return
        todo = state.pending
        try:
            todo.receipt.write(self.folder / _RECEIPTS)
            self._change_store(state, todo)
        except UnlearnKitError as error:
            error.add_note(f"{todo.receipt.sentence()} It is decided, and the next command on the ledger finishes it.")
            raise
        done = attrs.evolve(state, head=todo.receipt.digest, receipts=todo.receipt.number, pending=None)
        self.queue.drop(todo.answered)
        write_state(self.folder, done)
        self._delete_unreferenced(done)

    def _change_store(self, state: State, todo: Pending) -> None:
        store = ImportanceStore.open(self.folder / state.store)
        if todo.back_to:
            store.forget_edits_after(todo.back_to)
        if todo.edit and todo.edit not in store.manifest.edits:
            parts = {key: Importance.load(self.folder / _PENDING / name) for key, name in todo.parts.items()}
            store.change(remove=todo.remove, parts=parts, edit=todo.edit)

    def _delete_unreferenced(self, state: State) -> None:
        """Delete models and parts that nothing refers to, and older importances."""
        models = {kept.name for kept in state.models}
        unused = [path for path in self.models.folder.iterdir() if path.name not in models]
        unused += (self.folder / _PENDING).iterdir()
        for name in ("", _RECEIPTS, _QUEUE):
            unused += (self.folder / name).glob(".*.tmp")  # half written
        for path in unused:
            with suppress(OSError):  # open in another process on Windows: the next one gets it
                path.unlink()
        for path in self.folder.glob("importances-*"):
            if number_of(path.name) < number_of(state.store):
                shutil.rmtree(path, ignore_errors=True)

    def _make_salt(self) -> str:
        path = self.folder / _SALT
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.chmod(0o600)
                temporary.write_bytes(secrets.token_bytes(32))
            path.chmod(0o600)
        return hashlib.blake2b(path.read_bytes()).hexdigest()


def verify(ledger: Ledger) -> list[Receipt]:
    """Compare every digest of a ledger (receipts, state, models, importances, salt), and return all receipts.

    A `StoreError` names the first file that was changed by any byte, is missing, or does not fit the others. Somebody
    who can write to the folder could rewrite all of it: keep the digest of the last receipt in another place.
    """
    ledger.check_folders()
    state, receipts = ledger.state, ledger.receipts()
    ledger.hashes([0])
    for kept in state.models:
        ledger.models.check(kept)
    ledger.store.verify()
    for earlier, later in pairwise(receipts):
        if earlier.model_after != later.model_before:
            raise StoreError(
                f"{ledger.folder}: expected receipt {later.number} to begin with the model {earlier.model_after}, saw "
                f"{later.model_before}"
            )
    written = [*receipts, *([state.pending.receipt] if state.pending else [])]
    wrote = {("", r.model_after, r.model_file) for r in written}
    wrote |= {(r.model_after, r.model_before, r.patch_file) for r in written if r.outcome == "forgotten"}
    for kept in state.models:
        if (kept.through, kept.digest, kept.file) not in wrote:
            raise StoreError(f"{ledger.folder}: no receipt says that the file {kept.name} was written: {kept.file}")
    fits = ledger.store.manifest.models
    if state.pending is None and fits and fits[-1] != state.current.digest:
        raise StoreError(f"{ledger.folder}: the importances are of the model {fits[-1]}, not of {state.current.digest}")
    return receipts


def number_of(store: str) -> int:
    """Return the number in the name of a store: how often importances had been measured before."""
    return int(store.rpartition("-")[2])
