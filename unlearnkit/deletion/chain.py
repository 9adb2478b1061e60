"""The receipts of a ledger: files in a row, each holding the digest of the one before it."""

from pathlib import Path
from typing import final

import attrs

from unlearnkit.deletion.receipt import FORMAT, Receipt
from unlearnkit.utils.checksummed_json import read_sealed, write_sealed
from unlearnkit.utils.errors import StoreError

FOLDER = "receipts"


@final
@attrs.frozen
class Chain:
    """A folder of receipts, ``000001.json`` and on."""

    folder: Path

    def read(self) -> list[Receipt]:
        """Read all receipts and check each, and each against the one before it."""
        found: list[Receipt] = []
        for number, path in enumerate(self._files(), start=1):
            if path.name != _name(number):
                raise StoreError(
                    f"{path.parent}: expected the receipt {_name(number)}, saw {path.name}: one is missing"
                )
            receipt = read_sealed(path, Receipt, kind=FORMAT)
            before = found[-1].digest if found else ""
            if receipt.number != number or receipt.previous != before:
                raise StoreError(
                    f"{path}: expected receipt {number} after {before or 'none'}, saw receipt {receipt.number} after "
                    f"{receipt.previous or 'none'}: the chain is broken here"
                )
            found.append(receipt)
        return found

    def append(self, receipt: Receipt) -> None:
        """Write a receipt; one that is there already with the same bytes is left as it is."""
        path = self.folder / FOLDER / _name(receipt.number)
        if not path.exists():
            write_sealed(path, receipt, kind=FORMAT)
        elif read_sealed(path, Receipt, kind=FORMAT) != receipt:
            raise StoreError(f"{path} is there already, and is another receipt")

    def _files(self) -> list[Path]:
        return sorted((self.folder / FOLDER).glob("[0-9]*.json"))


def _name(number: int) -> str:
    return f"{number:06d}.json"
