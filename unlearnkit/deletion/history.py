"""The past of a ledger: check the record, put an earlier model back, delete earlier models."""

from itertools import pairwise

from unlearnkit.deletion.ledger import Ledger
from unlearnkit.deletion.receipts import Receipt
from unlearnkit.deletion.state import Pending
from unlearnkit.deletion.work import Deletion
from unlearnkit.utils.errors import ConfigurationError, StoreError


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


def rollback(deletion: Deletion) -> Receipt:
    """Put the model back that was in use before the last edit, bit-identical; it has the forgotten samples again.

    The store no longer has the importances of these samples: measure them again before the next request.
    """
    ledger = deletion.ledger
    with ledger.locked() as state:
        if not state.kept:
            raise ConfigurationError(
                "expected an earlier model to put back, saw none: it was purged, deletion.keep is 0, or nothing was "
                "edited yet"
            )
        earlier, current = state.kept[-1], state.current.digest
        edits = [r for r in ledger.receipts() if r.outcome == "forgotten" and r.model_after == current]
        if not edits:
            raise StoreError(f"expected a receipt of the edit that made the model {current}, saw none")
        undone = edits[-1]
        if earlier.through:
            earlier = ledger.models.put(deletion.model(earlier))
        else:
            ledger.models.check(earlier)  # the model in use may be damaged, which this repairs
        receipt = deletion.receipt(
            state,
            "restored",
            reason=f"receipt {undone.number} was rolled back: its samples are in the model again",
            requests=undone.requests,
            samples=undone.samples,
            groups=undone.groups,
            model_after=earlier.digest,
            model_file=earlier.file,
        )
        new = state.with_models(earlier, base=state.base, kept=state.kept[:-1])
        ledger.commit(new, Pending(receipt=receipt, back_to=earlier.digest))
        return receipt


def purge(deletion: Deletion) -> Receipt:
    """Delete all earlier models and the patches that lead back to them.

    The model that the importances were measured on goes too: requests for parts of groups then need new importances.
    """
    ledger = deletion.ledger
    with ledger.locked() as state:
        earlier = {kept.digest for kept in state.models} - {state.current.digest}
        receipt = deletion.receipt(state, "purged", reason=f"{len(earlier)} earlier models")
        ledger.commit(state.with_models(state.current, base=state.current, kept=()), Pending(receipt=receipt))
        left = sorted(path.name for path in ledger.models.folder.iterdir() if path.name != state.current.name)
        if left:
            raise StoreError(f"{ledger.folder}: cannot delete {', '.join(left)}: nothing refers to them; delete them")
        return receipt
