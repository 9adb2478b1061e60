"""Writes the results of a run to a folder: the edited model, its record and its page."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from unlearnkit.models.checkpoint import save_checkpoint
from unlearnkit.reporting.record import RunRecord
from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.files import atomic_folder, write_text


def write_result(
    folder: Path, model: nn.Module | None, record: RunRecord, *, metadata: Mapping[str, str], page: bool = False
) -> None:
    """Write ``model.safetensors`` and ``report.json`` to a folder that appears only when both are complete.

    An existing folder is replaced. Without a model, no checkpoint is written; the metadata are stored in it. With
    ``page``, ``report.html`` is written last: if a plot fails, ``unlearnkit report`` can write it later.
    """
    try:
        with atomic_folder(folder) as new:
            if model is not None:
                save_checkpoint(model, new / "model.safetensors", metadata)
            text = json.dumps(record.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
            write_text(new / "report.json", text + "\n")
    except OSError as error:
        raise StoreError(f"cannot write the results to {folder}: {error}: nothing was left half-written") from error
    if page:
        from unlearnkit.reporting.page import write_page  # noqa: PLC0415 - matplotlib takes a second

        write_page(folder, record)
