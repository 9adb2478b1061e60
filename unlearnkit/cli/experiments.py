"""``unlearnkit train``, ``run``, ``tune``, ``recommend``, ``compare``, ``report``, ``demo``: experiments, results."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnkit.cli.console import NOTHING_EDITED, bars, counting, line, one_process, print_table, together
from unlearnkit.cli.options import Again, ConfigPath, Methods, Overwrite, Quiet, Settings, labels, load
from unlearnkit.utils.errors import StoreError

if TYPE_CHECKING:
    from unlearnkit.reporting import RunRecord


def train(config: ConfigPath, settings: Settings = None, overwrite: Overwrite = False, quiet: Quiet = False) -> None:
    """Train the original model of an experiment, and write its checkpoint."""
    from unlearnkit.experiments import train_original

    one_process("train")
    chosen = load(config, settings)
    with bars(quiet=quiet) as progress:
        record = train_original(chosen, overwrite=overwrite, progress=progress)
    for number, epoch in enumerate(record["epochs"], start=1):
        line(f"epoch {number}: {_scores(epoch)}, {epoch['seconds']:.1f} s")
    line(f"test: {_scores(record['test'])}")
    line(f"checkpoint: {chosen.model.checkpoint}")


def run(
    config: ConfigPath,
    settings: Settings = None,
    method: Methods = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be edited; write nothing.")] = False,
    overwrite: Overwrite = False,
    again: Again = False,
    quiet: Quiet = False,
) -> None:
    """Make a trained model forget: importances, edits, evaluation, one folder of results per method."""
    from unlearnkit.experiments import run as run_methods
    from unlearnkit.reporting import run_table, tensor_table

    chosen = load(config, settings, method)
    records = []
    with together(chosen.device, quiet=quiet) as (first, progress):
        for record in run_methods(chosen, dry_run=dry_run, overwrite=overwrite, again=again, progress=progress):
            records.append(record)
            if dry_run and first:
                print_table(tensor_table(record.report))
    if not first:
        return
    if dry_run:
        line("dry run: nothing was written")
        return
    print_table(run_table(records))
    for record in records:
        line(record.sentence())
        if record.tuning is not None and not record.nothing_edited:
            line(record.tuning["sentence"])
    _end({Path(chosen.output) / record.label: record for record in records})


def tune(
    config: ConfigPath,
    settings: Settings = None,
    method: Annotated[
        str, typer.Option("--method", "-m", help="Tune the method with this label.", autocompletion=labels)
    ] = "",
    overwrite: Overwrite = False,
    again: Again = False,
    quiet: Quiet = False,
) -> None:
    """Search for the right edit: importances once, many edits, chosen on validation data within a budget."""
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
    print_table(tuning_table(tuned.tuning))
    line(tuned.tuning.sentence())
    if not tuned.record.nothing_edited:
        print_table(run_table([tuned.record]))
    _end({tuned.folder: tuned.record})


def recommend(
    config: ConfigPath,
    settings: Settings = None,
    overwrite: Overwrite = False,
    again: Again = False,
    quiet: Quiet = False,
) -> None:
    """Try the methods that can forget, tuned within a cost and judged without retrained models; write the best."""
    from unlearnkit.experiments import recommend as recommend_edit
    from unlearnkit.reporting import recommendation_table, run_table

    one_process("recommend")
    with bars(quiet=quiet) as progress:
        found = recommend_edit(load(config, settings), overwrite=overwrite, again=again, progress=progress)
    print_table(recommendation_table(found.recommendation))
    line(found.recommendation.sentence())
    if not found.record.nothing_edited:
        print_table(run_table([found.record]))
        line(found.record.judgement().sentence)
    _end({found.folder: found.record})


def compare(
    config: ConfigPath,
    settings: Settings = None,
    method: Methods = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Processes; default: as many as fit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the trials and which are done.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods, options, seeds and forget targets; call it again to continue after a stop."""
    from unlearnkit.experiments import Comparison
    from unlearnkit.experiments.config import TABLES

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
    print_table(comparison.table())
    for remark in (*comparison.remarks(), f"mean ± sd: {comparison.covers}"):
        line(remark)
    for trial in comparison.failed:
        line(f"failed: {trial.name}: {comparison.results[trial.key].error}")
    for name in TABLES:
        line(str(Path(comparison.folder) / name), soft_wrap=True)
    if comparison.failed:
        raise typer.Exit(1)


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with report.json, or one of such folders.")],
) -> None:
    """Write report.html again, from the report.json of earlier results."""
    from unlearnkit.reporting import read_record
    from unlearnkit.reporting.page import write_page

    found = [folder] if (folder / "report.json").exists() else sorted(p.parent for p in folder.glob("*/report.json"))
    if not found:
        raise StoreError(
            f"{folder}: expected report.json, or folders with it, saw neither: name results of unlearnkit run"
        )
    for each in found:
        record = read_record(each)
        try:
            page, sentence = write_page(each, record), record.judgement().sentence
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise StoreError(
                f"{each / 'report.json'} cannot be shown: {type(error).__name__}: {error}: the file was changed, or "
                "another version wrote it"
            ) from error
        line(f"{page}: {sentence}")


def demo(
    forget: Annotated[int, typer.Option(min=0, max=9, help="The digit to forget.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Train on real digits, forget one with several methods, compare with retraining; under a minute, no download."""
    from unlearnkit.experiments import demo as run_demo

    with bars(quiet=quiet) as progress:
        result = run_demo(forget=forget, epochs=epochs, seed=seed, device=device, progress=progress)
    print_table(result.table())
    line(result.lesson())


def _end(results: Mapping[Path, "RunRecord"]) -> None:
    """Name the files of each folder of results; the exit code says whether nothing was edited."""
    for folder in results:
        for path in (folder / name for name in ("model.safetensors", "report.json", "report.html")):
            if path.exists():
                line(str(path), soft_wrap=True)
    if any(record.nothing_edited for record in results.values()):
        raise typer.Exit(NOTHING_EDITED)


def _scores(scores: Mapping[str, float | None]) -> str:
    accuracy = scores["accuracy"]
    return f"loss {scores['loss']:.4f}" + ("" if accuracy is None else f", accuracy {accuracy:.3f}")
