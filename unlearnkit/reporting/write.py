"""Writes the results of a run to a folder: the edited model, its record and its page."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from unlearnkit.models.checkpoint import save_checkpoint
from unlearnkit.reporting.record import RunRecord
from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.files import atomic_folder, atomic_write


def write_result(
    folder: Path, model: nn.Module | None, record: RunRecord, *, metadata: Mapping[str, str], page: bool = False
) -> None:
    """Write ``model.safetensors`` and ``report.json`` to a folder that appears only when both are complete.

    The page is written last: if a plot fails, no result is lost, and ``unlearnkit report`` can write the page again.

    Args:
        folder: An existing folder is replaced, see `unlearnkit.utils.files.atomic_folder`.
        model: The edited model; with None no checkpoint is written.
        record: Its record.
        metadata: Stored in the checkpoint.
        page: Whether to write ``report.html`` too.

    Raises:
        StoreError: The folder cannot be written.
    """
    try:
        with atomic_folder(folder) as new:
            if model is not None:
                save_checkpoint(model, new / "model.safetensors", metadata)
            text = json.dumps(record.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
            with atomic_write(new / "report.json") as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write the results to {folder}: {error}: nothing was left half-written") from error
    if page:
        from unlearnkit.reporting.page import write_page  # noqa: PLC0415 - matplotlib takes a second

        write_page(folder, record)
