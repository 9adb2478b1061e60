"""A ledger of deletion requests: the model in use, its importances, the queue, and a receipt for every change."""

import hashlib
import os
import re
import secrets
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import final

import attrs
from filelock import FileLock, Timeout
from torch import nn

from unlearnkit.deletion.requests import Queue
from unlearnkit.deletion.samples import SAMPLES, SAMPLES_FORMAT, Samples
from unlearnkit.deletion.state import (
    FILE,
    FORMAT,
    Models,
    Pending,
    Receipt,
    State,
    read_receipts,
    receipt_name,
    write_state,
)
from unlearnkit.experiments.provenance import versions
from unlearnkit.importance import Importance, ImportanceStore
from unlearnkit.importance.store.files import StoreManifest
from unlearnkit.utils.checksummed_json import read_sealed, seal_digest, write_sealed
from unlearnkit.utils.errors import StoreError, UnlearnKitError, UnlearnKitWarning

_SALT = "salt"
_MODELS = "models"
_PENDING = "pending"
_QUEUE = "queue"
_RECEIPTS = "receipts"
_LOCK = "lock"
_SHORTEST_SALT, _LONGEST_SALT = 16, 64  # bytes; a key of BLAKE2b has at most 64
_MADE_HERE = re.compile(
    r"(.*/)?\.[0-9a-f]{16}\.tmp|models/[0-9a-f]{32}(\.patch)?\.safetensors|pending/(unlearnkit-[^/]+/)?[0-9a-f]{16}\."
    r"safetensors|importances-[0-9]+/([0-9a-f]{16}\.(safetensors|part)|manifest\.json|lock)"
)
"""Names of the files that may be deleted when nothing refers to them; others are not the ledger's."""


@final
@attrs.frozen
class Ledger:
    """A folder that holds the model in use, its importances, waiting requests and the receipts.

    Every change is first written to ``ledger.json``, atomically, and then carried out; the first to open a ledger after
    a crash carries out what is left, and deletes files that nothing refers to.

    Attributes:
        folder: Where it is.
        salt: The file of its salt; None is the file ``salt`` in the folder.
        told: Called with each receipt when all that it says is done, before the ledger records that it is; so after a
            crash it may be called again.
    """

    folder: Path = attrs.field(converter=Path)
    salt: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path), kw_only=True)
    told: Callable[[Receipt], None] | None = attrs.field(default=None, kw_only=True, eq=False, repr=False)

    def start(
        self, model: nn.Module, *, samples: Callable[[bytes], Samples], receipt: Callable[[State], Receipt]
    ) -> None:
        """Make a ledger of a trained model, without importances; ``samples`` gets the key of their digests."""
        try:
            for name in (_RECEIPTS, _MODELS, _PENDING, _QUEUE):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            with self._alone():
                if (self.folder / FILE).exists():
                    raise StoreError(f"{self.folder}: there is a ledger already: choose another folder")
                key = self._make_salt()
                known = samples(key)
                write_sealed(self.folder / SAMPLES, known, kind=SAMPLES_FORMAT)
                kept = self.models.put(model)
                state = State(current=kept, base=kept, salt=hashlib.blake2b(key).hexdigest())
                first = attrs.evolve(receipt(state), data=seal_digest(known))
                self.new_store(state.store)
                write_state(self.folder, attrs.evolve(state, pending=Pending(receipt=first)))
                self.finish()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StoreError(f"cannot make a ledger in {self.folder}: {error}") from error

    @property
    def state(self) -> State:
        if not (self.folder / FILE).exists():
            raise StoreError(f"{self.folder}: there is no ledger: `unlearnkit ledger CONFIG.toml` starts one")
        return read_sealed(self.folder / FILE, State, kind=FORMAT)

    @property
    def samples(self) -> Samples:
        """The training samples at the start; the first receipt has the digest of this list."""
        path = self.folder / SAMPLES
        known = read_sealed(path, Samples, kind=SAMPLES_FORMAT)
        expected = self.receipts()[0].data
        if seal_digest(known) != expected:
            raise StoreError(f"{path}: expected the samples of receipt 1, {expected}, saw others: the file was changed")
        return known

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
        folder = self.folder / self.state.store
        StoreManifest.read(folder)
        return ImportanceStore(folder, scratch=self.folder / _PENDING)

    @contextmanager
    def locked(self) -> Iterator[Receipt | None]:
        """Lock the ledger and finish what a crash has left; yields the receipt that was finished, if there was one."""
        self.check_folders()  # says that there is no ledger, before a lock file makes a folder look like one
        try:
            with self._alone():
                yield self._recover()
        except BrokenPipeError:  # whoever reads what is shown has gone
            raise
        except OSError as error:
            raise StoreError(f"cannot write to the ledger {self.folder}: {error}") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with FileLock(self.folder / _LOCK, timeout=0):
                yield
        except Timeout as error:
            raise StoreError(f"another process is working on the ledger {self.folder}: wait, and try again") from error

    def check_unused(self) -> None:
        """Refuse to go on while another process changes the ledger."""
        with suppress(OSError), self._alone():  # OSError: a folder that is read-only
            pass

    def check_folders(self) -> None:
        """Refuse a ledger with a folder that is missing or a link: files in its folders may be deleted."""
        state = self.state
        for name in (_RECEIPTS, _MODELS, _PENDING, _QUEUE, state.store, state.next_store):
            path = self.folder / name
            missing = not path.is_dir() and name != state.next_store
            if path.is_symlink() or missing:
                raise StoreError(f"{path}: expected a folder, saw {'a link' if path.is_symlink() else 'none'}")

    def key(self) -> bytes:
        """Return the salt, the key of the samples' digests; without it nobody can tell whose they are."""
        path, inside = self.salt or self.folder / _SALT, self.salt is None
        try:
            with path.open("rb") as file:
                salt = b"" if inside and path.is_symlink() else file.read(_LONGEST_SALT + 1)
        except OSError as error:
            raise StoreError(f"{path}: cannot read the salt: {error}") from error
        if hashlib.blake2b(salt).hexdigest() != self.state.salt:
            raise StoreError(f"{path}: expected the salt of this ledger, saw another, or a link: it was changed")
        return salt

    def forgotten(self) -> frozenset[str]:
        """Return the hashes of all forgotten samples: those of the receipts, without those that were put back."""
        forgotten: set[str] = set()
        for receipt in self.receipts():
            if receipt.outcome == "forgotten":
                forgotten.update(receipt.samples)
            elif receipt.outcome == "restored":
                forgotten.difference_update(receipt.samples)
        return frozenset(forgotten)

    def new_store(self, name: str, *, empty: bool = False) -> ImportanceStore:
        """Make an empty store of importances, or open one whose filling was interrupted, unless it must be empty."""
        folder = self.folder / name
        if (folder / "manifest.json").exists() and not empty:
            return ImportanceStore.open(folder)
        (folder / "manifest.json").unlink(missing_ok=True)  # first: without it the others are nobody's
        for path in folder.glob("*"):
            if _MADE_HERE.fullmatch(f"{name}/{path.name}"):
                path.unlink()
        return ImportanceStore.create(folder, versions=versions())

    def commit(self, state: State, pending: Pending, parts: Iterable[tuple[str, Importance]] = ()) -> Receipt:
        """Write a new state with what is to be done, and do it; returns its receipt."""
        files = {}
        for key, part in parts:
            files[key] = f"{secrets.token_hex(8)}.safetensors"
            part.save(self.folder / _PENDING / files[key])
        write_state(self.folder, attrs.evolve(state, pending=attrs.evolve(pending, parts=files)))
        self.finish()
        return pending.receipt

    def _recover(self) -> Receipt | None:
        """Finish what an interrupted command has left, and warn of it."""
        state = self.state
        if state.pending is None:
            swept = self._delete_unreferenced(state)
            if swept:
                self._warn(f"{len(swept)} files that nothing refers to were deleted, such as {swept[0]}")
            return None
        self.finish()
        self._warn(f"what it had decided was finished now, receipt {state.pending.receipt.number}")
        return state.pending.receipt

    def _warn(self, what: str) -> None:
        warnings.warn(f"{self.folder}: a command was interrupted: {what}", UnlearnKitWarning, stacklevel=4)

    def finish(self) -> None:
        """Do what is decided and not done yet; the ledger must be locked."""
        state = self.state
        if state.pending is None:
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
        # Importances that are being measured again were of the model before, and may have forgotten samples.
        self._delete_unreferenced(done, stores={done.store} if todo.new_model else None)
        if self.told:
            self.told(todo.receipt)
        write_state(self.folder, done)

    def _change_store(self, state: State, todo: Pending) -> None:
        store = ImportanceStore.open(self.folder / state.store)
        if todo.back_to:
            store.forget_edits_after(todo.back_to)
        if todo.edit and todo.edit not in store.manifest.edits:
            parts = {key: Importance.load(self.folder / _PENDING / name) for key, name in todo.parts.items()}
            store.change(remove=todo.remove, parts=parts, edit=todo.edit)

    def unreferenced(self, state: State, *, stores: Collection[str] | None = None) -> list[str]:
        """Return the files in the folder that nothing refers to, by their paths in it; ``stores`` may be filled."""
        kept = set(self._referenced(state, stores or {state.store, state.next_store}))
        names = (p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_symlink() or p.is_file())
        return sorted(name for name in names if name not in kept)

    def _referenced(self, state: State, stores: Collection[str]) -> Iterator[str]:
        folder, salt = self.folder.resolve(), (self.salt or self.folder / _SALT).resolve()
        yield from (FILE, SAMPLES, _LOCK)
        if salt.is_relative_to(folder):
            yield salt.relative_to(folder).as_posix()
        decided = 1 if state.pending else 0
        yield from (f"{_RECEIPTS}/{receipt_name(n)}" for n in range(1, state.receipts + decided + 1))
        yield from (f"{_QUEUE}/{path.name}" for path in self.queue.folder.glob("*.json"))
        yield from (f"{_MODELS}/{kept.name}" for kept in state.models)
        yield from (f"{_PENDING}/{name}" for name in (state.pending.parts.values() if state.pending else ()))
        for store in stores:
            folder = self.folder / store
            try:
                used = {"manifest.json", _LOCK, *(shard.file for shard in StoreManifest.read(folder).shards)}
            except StoreError:  # a damaged one can be measured again, and must not keep the ledger from it
                used = {path.name for path in folder.glob("[!.]*")}
            passes = set() if state.measured and store == state.store else {p.name for p in folder.glob("*.part")}
            yield from (f"{store}/{name}" for name in used | passes)

    def _delete_unreferenced(self, state: State, *, stores: Collection[str] | None = None) -> list[str]:
        """Delete the ledger's own files that nothing refers to; return their names."""
        unused = [name for name in self.unreferenced(state, stores=stores) if _MADE_HERE.fullmatch(name)]
        for name in unused:
            with suppress(OSError):  # open in another process on Windows: the next one gets it
                (self.folder / name).unlink()
        for folder in [*self.folder.glob("importances-*"), *(self.folder / _PENDING).glob("unlearnkit-*")]:
            with suppress(OSError):  # it has files
                folder.rmdir()
        return unused

    def _make_salt(self) -> bytes:
        """Make a file of random bytes that only its owner can read, unless there is one."""
        path = self.salt or self.folder / _SALT
        if not path.exists() or path.stat().st_size == 0:
            path.touch(mode=0o600)
            with path.open("wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
        with path.open("rb") as file:
            salt = file.read(_LONGEST_SALT + 1)
        if not _SHORTEST_SALT <= len(salt) <= _LONGEST_SALT:
            raise StoreError(f"{path}: expected {_SHORTEST_SALT} to {_LONGEST_SALT} bytes of salt, saw {len(salt)}")
        return salt


def verify(ledger: Ledger, *, head: str = "") -> list[Receipt]:
    """Compare every digest of a ledger (receipts, state, samples, models, importances, salt), and return all receipts.

    A `StoreError` names the first file that was changed by any byte, is missing, does not fit the others, or that
    nothing refers to. Somebody who can write to the folder could rewrite all of it: keep the digest of a receipt in
    another place, and pass it as ``head``; then that receipt and all before it are as they were.
    """
    ledger.check_folders()
    try:
        return _verified(ledger, head)
    except StoreError:
        ledger.check_unused()  # what was read may be half of a change
        raise


def _verified(ledger: Ledger, head: str) -> list[Receipt]:
    state, receipts = ledger.state, ledger.receipts()
    if ledger.salt is None or ledger.salt.exists():  # an auditor may be without a salt that is kept elsewhere
        ledger.key()
    if receipts:
        _ = ledger.samples
    if head and head not in {receipt.digest for receipt in receipts}:
        raise StoreError(
            f"{ledger.folder}: expected a receipt with the digest {head!r}, saw {len(receipts)} others: receipts were "
            "rewritten or removed, or the digest is of another ledger"
        )
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
    unknown = [] if state.pending else ledger.unreferenced(state)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise StoreError(
            f"{ledger.folder}: nothing refers to {', '.join(unknown[:5])}{more}: the next command that changes the "
            "ledger deletes what an interrupted one has left; move other files out of the folder"
        )
    return receipts
