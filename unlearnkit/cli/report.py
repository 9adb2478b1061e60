"""``unlearnkit report``."""

from pathlib import Path
from typing import Annotated

import typer

from unlearnkit.cli.console import clear_errors, line
from unlearnkit.cli.options import Traceback
from unlearnkit.utils.errors import StoreError


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Results of run or tune: a folder with report.json, or one of such folders."
        ),
    ],
    traceback: Traceback = False,
) -> None:
    """Write report.html again, from the report.json of earlier results."""
    with clear_errors(traceback=traceback):
        from unlearnkit.reporting import read_record
        from unlearnkit.reporting.page import write_page

        found = (
            [folder] if (folder / "report.json").exists() else sorted(p.parent for p in folder.glob("*/report.json"))
        )
        if not found:
            raise StoreError(
                f"{folder}: expected report.json, or folders with it, saw neither: name results of unlearnkit run"
            )
        for each in found:
            record = read_record(each)
            page, sentence = write_page(each, record), record.judgement().sentence
            line(f"{page}: {sentence}")
