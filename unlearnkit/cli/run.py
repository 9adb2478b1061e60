"""``unlearnkit run``."""

from typing import Annotated

import typer

from unlearnkit.cli.console import clear_errors, line, out, together
from unlearnkit.cli.options import Again, ConfigPath, Methods, Overwrite, Quiet, Settings, Traceback, load


def run(
    config: ConfigPath,
    settings: Settings = None,
    method: Methods = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be edited; write nothing.")] = False,
    overwrite: Overwrite = False,
    again: Again = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Make a trained model forget: importances, edits, evaluation, one folder of results per method."""
    with clear_errors(traceback=traceback):
        from unlearnkit.experiments import run as run_methods
        from unlearnkit.reporting import run_table, tensor_table

        chosen = load(config, settings, method)
        records = []
        with together(chosen.device, quiet=quiet) as (first, progress):
            for record in run_methods(chosen, dry_run=dry_run, overwrite=overwrite, again=again, progress=progress):
                records.append(record)
                if dry_run and first:
                    out.print(tensor_table(record.report))
        if not first:
            return
        if dry_run:
            line("dry run: nothing was written")
            return
        out.print(run_table(records))
        for record in records:
            line(record.sentence())
        page = ", report.html" if chosen.evaluation.page else ""
        line(f"results: {chosen.output}/LABEL/model.safetensors, report.json{page}")
