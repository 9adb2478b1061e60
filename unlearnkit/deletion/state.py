"""Where a ledger stands: one small file that is replaced whole. A change of the ledger happens when it is replaced."""

from collections.abc import Mapping
from pathlib import Path
from typing import final

import attrs

from unlearnkit.deletion.receipt import Receipt
from unlearnkit.sealed import read_sealed, write_sealed
from unlearnkit.store import Edit

FORMAT = "unlearnkit-ledger-1"
FILE = "ledger.json"


@final
@attrs.frozen(kw_only=True)
class KeptModel:
    """A model of the ledger.

    Attributes:
        digest: Of its weights and buffers; its file is called so.
        file: Digest of the file's bytes.
    """

    digest: str
    file: str


@final
@attrs.frozen(kw_only=True)
class Pending:
    """What is decided and must still be done; done again after a crash, it does nothing twice.

    Attributes:
        receipt: To be written.
        remove: Groups to remove from the store.
        parts: Group to the file of the importance that must be taken out of it.
        edit: To be recorded in the store, or None.
        back_to: Digest of an earlier model that is in use again: edits after it are struck from the store.
        answered: Names of the requests that are dealt with.
    """

    receipt: Receipt
    remove: tuple[str, ...] = ()
    parts: Mapping[str, str] = attrs.field(factory=dict)
    edit: Edit | None = None
    back_to: str = ""
    answered: tuple[str, ...] = ()


@final
@attrs.frozen(kw_only=True)
class State:
    """Where a ledger stands.

    Attributes:
        current: The model in use.
        base: The model that the importances were measured on.
        kept: Earlier models that can be put back, the oldest first.
        store: Name of the folder with the importances.
        head: Digest of the last receipt.
        receipts: How many there are.
        salt: Digest of the salt.
        pending: What a crash has left to do.
    """

    current: KeptModel
    base: KeptModel
    kept: tuple[KeptModel, ...] = ()
    store: str = "importances-0"
    head: str = ""
    receipts: int = 0
    salt: str = ""
    pending: Pending | None = None


def write_state(folder: Path, state: State) -> None:
    """Replace the state.

    Args:
        folder: Of the ledger.
        state: The new one.
    """
    write_sealed(folder / FILE, state, kind=FORMAT)


def read_state(folder: Path) -> State:
    """Read the state and check it.

    Args:
        folder: Of the ledger.

    Returns:
        The state.
    """
    return read_sealed(folder / FILE, State, kind=FORMAT)
