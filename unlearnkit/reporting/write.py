"""Writes the results of a run to a folder: the edited model, its record and its page."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from unlearnkit.models.checkpoint import save_checkpoint
from unlearnkit.reporting.record import FORMAT, RunRecord
from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.files import atomic_folder, is_temporary, read_text, write_text

_FILES = {"model.safetensors", "report.json", "report.html"}


def check_replaceable(folder: Path) -> None:
    """Refuse to replace anything but the results of an earlier run: `write_result` would delete it."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        seen = "a link" if folder.is_symlink() else "a file"
    elif others := sorted(p.name for p in folder.iterdir() if not _is_ours(p)):
        seen = f"{others[0]!r} in it" + (f" and {len(others) - 1} more" if len(others) > 1 else "")
    elif any(folder.iterdir()) and not _is_record(folder / "report.json"):
        seen = "no report.json of a run in it"
    else:
        return
    raise StoreError(
        f"{folder}: expected the results of an earlier run, which alone may be overwritten, saw {seen}: move it away, "
        "or choose another label or output"
    )


def _is_ours(path: Path) -> bool:
    return path.is_file() and (path.name in _FILES or is_temporary(path))


def _is_record(path: Path) -> bool:
    try:
        plain = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError, StoreError):
        return False
    return isinstance(plain, dict) and plain.get("format") == FORMAT


def write_result(
    folder: Path, model: nn.Module | None, record: RunRecord, *, metadata: Mapping[str, str], page: bool = False
) -> None:
    """Write ``model.safetensors`` and ``report.json`` to a folder that appears only when both are complete.

    The results of an earlier run are replaced, and nothing else; see `check_replaceable`. Without a model, no
    checkpoint is written; the metadata are stored in it. With ``page``, ``report.html`` is written last: if a plot
    fails, ``unlearnkit report`` can write it later.
    """
    try:
        with atomic_folder(folder) as new:
            if model is not None:
                save_checkpoint(model, new / "model.safetensors", metadata)
            text = json.dumps(record.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
            write_text(new / "report.json", text + "\n")
            check_replaceable(folder)
    except OSError as error:
        raise StoreError(f"cannot write the results to {folder}: {error}: nothing was left half-written") from error
    if page:
        from unlearnkit.reporting.page import write_page  # noqa: PLC0415 - matplotlib takes a second

        write_page(folder, record)
