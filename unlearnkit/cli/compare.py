"""``unlearnkit compare``."""

from typing import Annotated

import typer

from unlearnkit.cli.console import clear_errors, counting, line, out, together
from unlearnkit.cli.options import ConfigPath, Methods, Quiet, Settings, Traceback, load


def compare(
    config: ConfigPath,
    settings: Settings = None,
    method: Methods = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes; by default, by cores and free memory.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the trials and which are done.")] = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Compare methods, options, seeds and forget targets; call it again to continue after a stop."""
    with clear_errors(traceback=traceback):
        from unlearnkit.experiments import Comparison

        chosen = load(config, settings, method)
        with together(chosen.device, quiet=True) as (first, _):
            comparison = Comparison.plan(chosen)
            sizing = comparison.sizing(jobs)
            pending = comparison.pending
            if first and dry_run:
                left = {trial.key for trial in pending}
                for trial in comparison.trials:
                    line(f"{'to do' if trial.key in left else 'done '}  {trial.name}")
            if first:
                line(f"{len(comparison.trials)} trials, {len(pending)} to do; {sizing.why}", soft_wrap=True)
            if dry_run:
                return
            with counting(comparison.share, quiet=quiet or not first) as show:
                comparison.run(sizing.jobs, watch=lambda event: show(event.kind, event.name, counts=bool(event.key)))
        if not first:
            return
        out.print(comparison.table())
        for remark in (*comparison.remarks(), f"mean ± sd: {comparison.covers}"):
            line(remark)
        for trial in comparison.failed:
            line(f"failed: {trial.name}: {comparison.results[trial.key].error}")
        line(f"results: {comparison.folder}/trials.csv, summary.csv, summary.md")
    if comparison.failed:
        raise typer.Exit(1)
