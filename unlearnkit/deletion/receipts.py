"""Receipts of deletion requests: files in a chain, each holding the digest of the one before it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

import attrs

from unlearnkit.utils.checksummed_json import read_sealed, seal_digest, write_sealed
from unlearnkit.utils.errors import StoreError

FORMAT = "unlearnkit-receipt-2"
STATEMENT = (
    "This is approximate unlearning. The receipt says what was asked and what was done; it is no certificate of "
    "erasure: low accuracy on forgotten samples does not prove that they left no trace in the model."
)

Outcome = Literal["started", "forgotten", "rolled back", "nothing to forget", "restored", "purged", "measured again"]


@final
@attrs.frozen(kw_only=True)
class Receipt:
    """What was done about deletion requests; ``samples`` are salted hashes, ``digest`` shows any later change."""

    number: int
    previous: str
    time: str
    outcome: Outcome
    reason: str = ""
    requests: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    model_before: str = ""
    model_after: str = ""
    model_file: str = ""
    patch_file: str = ""
    edit: Mapping[str, Any] = attrs.field(factory=dict)
    before: Mapping[str, Any] = attrs.field(factory=dict)
    after: Mapping[str, Any] = attrs.field(factory=dict)
    staleness: str = ""
    seconds: Mapping[str, float] = attrs.field(factory=dict)
    peak_mib: float | None = None
    seeds: Mapping[str, int] = attrs.field(factory=dict)
    versions: Mapping[str, str] = attrs.field(factory=dict)
    statement: str = STATEMENT

    @property
    def digest(self) -> str:
        """Hash of everything in it, the previous receipt's digest included: 64 hexadecimal digits."""
        return seal_digest(self)

    def sentence(self) -> str:
        asked = f" ({', '.join(self.requests)})" if self.requests else ""
        what = {
            "started": "the record was started",
            "forgotten": f"{len(self.samples)} samples were forgotten",
            "rolled back": "the edit was rolled back, and the model is as it was",
            "nothing to forget": "there was nothing to forget",
            "restored": "an earlier model was put back",
            "purged": "earlier models were deleted",
            "measured again": "the importances were measured again",
        }[self.outcome]
        return f"Receipt {self.number}{asked}: {what}{': ' if self.reason else ''}{self.reason}."


def read_receipts(folder: Path) -> list[Receipt]:
    """Read ``000001.json`` and so on, and check each receipt by itself and against the one before it."""
    found: list[Receipt] = []
    for number, path in enumerate(sorted(folder.glob("[0-9]*.json")), start=1):
        if path.name != _name(number):
            raise StoreError(f"{folder}: expected the receipt {_name(number)}, saw {path.name}: one is missing")
        receipt = read_sealed(path, Receipt, kind=FORMAT)
        before = found[-1].digest if found else ""
        if receipt.number != number or receipt.previous != before:
            raise StoreError(
                f"{path}: expected receipt {number} after {before or 'none'}, saw receipt {receipt.number} after "
                f"{receipt.previous or 'none'}: the chain is broken here"
            )
        found.append(receipt)
    return found


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Write a receipt, unless the same one exists already."""
    path = folder / _name(receipt.number)
    if not path.exists():
        write_sealed(path, receipt, kind=FORMAT)
    elif read_sealed(path, Receipt, kind=FORMAT) != receipt:
        raise StoreError(f"{path} already exists with another receipt")


def _name(number: int) -> str:
    return f"{number:06d}.json"
