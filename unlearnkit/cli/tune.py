"""``unlearnkit tune``."""

from typing import Annotated

import typer

from unlearnkit.cli.console import clear_errors, line, out, together
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
        line(tuned.tuning.sentence())
        if tuned.tuning.chosen is not None:
            out.print(run_table([tuned.record]))
        line(f"results: {tuned.folder}")
    if tuned.tuning.chosen is None:
        raise typer.Exit(1)
