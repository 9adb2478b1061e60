"""``unlearnkit tune``."""

from typing import Annotated

import typer
from rich.markup import escape

from unlearnkit.cli.console import clear_errors, out, together
from unlearnkit.cli.options import Again, ConfigPath, Overwrite, Quiet, Settings, Traceback, load


def tune(
    config: ConfigPath,
    settings: Settings = None,
    method: Annotated[str, typer.Option("--method", "-m", help="Tune the method with this label.")] = "",
    overwrite: Overwrite = False,
    again: Again = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Search for the right edit: importances once, many edits, chosen on validation data within a budget."""
    with clear_errors(traceback=traceback):
        import attrs

        from unlearnkit.experiments import tune as tune_method
        from unlearnkit.reporting import run_table, tuning_table

        chosen = load(config, settings)
        if method:
            chosen = attrs.evolve(chosen, tuning=attrs.evolve(chosen.tuning, method=method))
        with together(chosen.device, quiet=quiet) as (first, progress):
            tuned = tune_method(chosen, overwrite=overwrite, again=again, progress=progress)
        if not first:
            return
        out.print(tuning_table(tuned.tuning))
        out.print(escape(tuned.tuning.sentence()), highlight=False)
        if tuned.tuning.chosen is not None:
            out.print(run_table([tuned.record]))
        out.print(f"results: {escape(str(tuned.folder))}", highlight=False)
    if tuned.tuning.chosen is None:
        raise typer.Exit(1)
