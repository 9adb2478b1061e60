"""``unlearnkit report``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from unlearnkit.cli.console import clear_errors, out
from unlearnkit.cli.options import Traceback


def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Results of run or tune: with report.json, or a folder of such folders."),
    ],
    traceback: Traceback = False,
) -> None:
    """Write report.html again, from the report.json of earlier results."""
    from unlearnkit.reporting import read_record  # noqa: PLC0415 - torch takes seconds
    from unlearnkit.reporting.page import write_page  # noqa: PLC0415
    from unlearnkit.utils.errors import StoreError  # noqa: PLC0415

    with clear_errors(traceback=traceback):
        found = (
            [folder] if (folder / "report.json").exists() else sorted(p.parent for p in folder.glob("*/report.json"))
        )
        if not found:
            raise StoreError(
                f"{folder}: expected report.json, or folders with it, saw neither: name results of unlearnkit run"
            )
        for each in found:
            record = read_record(each)
            out.print(
                f"{escape(str(write_page(each, record)))}: {escape(record.judgement().sentence)}", highlight=False
            )
