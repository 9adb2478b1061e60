"""``unlearnkit compare``."""

from typing import Annotated

import typer
from rich.markup import escape

from unlearnkit.commands.options import ConfigPath, Methods, Quiet, Settings, Traceback, only
from unlearnkit.config import load_config
from unlearnkit.console import clear_errors, counting, one_process, out


def compare(
    config: ConfigPath,
    settings: Settings = None,
    method: Methods = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes; left out, by cores and free memory.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the trials and which are done.")] = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Compare methods, options, seeds and forget targets; a run that was stopped goes on where it was."""
    from unlearnkit.comparison import Comparison  # noqa: PLC0415 - torchvision and scikit-learn take seconds

    with clear_errors(traceback=traceback):
        one_process("compare")
        comparison = Comparison.plan(only(load_config(config, settings or []), method or []))
        pending, total = comparison.pending, len(comparison.trials)
        if dry_run:
            left = {trial.key for trial in pending}
            for trial in comparison.trials:
                out.print(f"{'to do' if trial.key in left else 'done '}  {escape(trial.name)}", highlight=False)
        chosen = comparison.sizing(jobs)
        out.print(f"{total} trials, {len(pending)} to do; {escape(chosen.why)}", highlight=False, soft_wrap=True)
        if dry_run:
            return
        with counting(len(pending), quiet=quiet) as told:
            comparison.run(chosen.jobs, watch=lambda event: told(event.kind, event.name, counts=bool(event.key)))
        out.print(comparison.table())
        for line in comparison.remarks():
            out.print(escape(line), highlight=False)
        out.print(escape(f"mean ± sd: {comparison.covers}"), highlight=False)
        for trial in comparison.failed:
            out.print(escape(f"failed: {trial.name}: {comparison.results[trial.key].error}"), highlight=False)
        out.print(f"results: {escape(str(comparison.folder))}/trials.csv, summary.csv, summary.md", highlight=False)
    if comparison.failed:
        raise typer.Exit(1)
