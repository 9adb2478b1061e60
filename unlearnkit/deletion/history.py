"""Looking back: check the record, put an earlier model back, delete earlier models."""

from itertools import pairwise
from typing import TYPE_CHECKING

from unlearnkit.deletion.ledger import Ledger
from unlearnkit.deletion.receipt import Receipt
from unlearnkit.deletion.state import Pending, State
from unlearnkit.utils.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from unlearnkit.deletion.work import Deletion


def verify(ledger: Ledger) -> list[Receipt]:
    """Walk the chain of receipts and compare every digest: any byte that was changed is found.

    Receipts, the ledger's state, the models, the importances and the salt are checked. Somebody who can write to the
    folder could rewrite all of it: keep the digest of the last receipt in another place, and compare.

    Args:
        ledger: Any.

    Returns:
        All receipts.

    Raises:
        StoreError: Naming the first file that was changed, is missing, or does not fit the others.
    """
    ledger.check_folders()
    state, receipts = ledger.state, ledger.receipts()
    ledger.hashes([0])
    for kept in state.models:
        ledger.models.check(kept)
    ledger.store.verify()
    _check_models(ledger, receipts)
    _check_files(ledger, state, [*receipts, *([state.pending.receipt] if state.pending else [])])
    fits = ledger.store.manifest.models
    if state.pending is None and fits and fits[-1] != state.current.digest:
        raise StoreError(f"{ledger.folder}: the importances are of the model {fits[-1]}, not of {state.current.digest}")
    return receipts


def rollback(deletion: "Deletion") -> Receipt:
    """Put the model back that was in use before the last edit. What that edit forgot is then in the model again.

    Where it was kept as a patch, the old values are written into the model in use and the result is compared with its
    digest: it is the model of before to the last bit.

    The store has given up the importances of those samples: measure them again before the next request.

    Args:
        deletion: What the work is done with.

    Returns:
        The receipt.

    Raises:
        ConfigurationError: There is no earlier model: none was kept, or it was purged.
    """
    ledger = deletion.ledger
    with ledger.held() as state:
        if not state.kept:
            raise ConfigurationError(
                "expected an earlier model to put back, saw none: it was purged, deletion.keep is 0, or nothing was "
                "edited yet"
            )
        earlier, undone = state.kept[-1], _last_edit(ledger.receipts(), state.current.digest)
        if earlier.through:
            earlier = ledger.models.put(deletion.model(earlier))
        else:
            ledger.models.check(earlier)  # the one in use may be damaged: then this mends it
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
        new = state.standing(earlier, base=state.base, kept=state.kept[:-1])
        ledger.decide(new, Pending(receipt=receipt, back_to=earlier.digest))
        return receipt


def purge(deletion: "Deletion") -> Receipt:
    """Delete all earlier models, and the patches that lead back to them: afterwards nothing can be put back.

    The patches go whole: their factors, with the edited model beside them, would give old values back. The model that
    the importances were measured on goes too; requests for parts of groups then need importances that are measured
    again.

    Args:
        deletion: What the work is done with.

    Returns:
        The receipt.

    Raises:
        StoreError: A file could not be deleted.
    """
    ledger = deletion.ledger
    with ledger.held() as state:
        gone = {kept.digest for kept in state.models} - {state.current.digest}
        receipt = deletion.receipt(state, "purged", reason=f"{len(gone)} earlier models")
        ledger.decide(state.standing(state.current, base=state.current, kept=()), Pending(receipt=receipt))
        left = sorted(path.name for path in ledger.models.files if path.name != state.current.name)
        if left:
            raise StoreError(f"{ledger.folder}: cannot delete {', '.join(left)}: nothing refers to them; delete them")
        return receipt


def _last_edit(receipts: list[Receipt], current: str) -> Receipt:
    edits = [r for r in receipts if r.outcome == "forgotten" and r.model_after == current]
    if not edits:
        raise StoreError(f"expected a receipt of the edit that made the model {current}, saw none")
    return edits[-1]


def _check_models(ledger: Ledger, receipts: list[Receipt]) -> None:
    for earlier, later in pairwise(receipts):
        if earlier.model_after != later.model_before:
            raise StoreError(
                f"{ledger.folder}: expected receipt {later.number} to begin with the model {earlier.model_after}, saw "
                f"{later.model_before}"
            )


def _check_files(ledger: Ledger, state: State, receipts: list[Receipt]) -> None:
    """Compare the files of models and patches with what the receipts say of them."""
    wrote = {("", r.model_after, r.model_file) for r in receipts}
    wrote |= {(r.model_after, r.model_before, r.patch_file) for r in receipts if r.outcome == "forgotten"}
    for kept in state.models:
        if (kept.through, kept.digest, kept.file) not in wrote:
            raise StoreError(f"{ledger.folder}: no receipt says that the file {kept.name} was written: {kept.file}")
