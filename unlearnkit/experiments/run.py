"""The main job from a configuration: importances once, then every method on a copy of the original model."""

from collections.abc import Iterator
from contextlib import nullcontext

import attrs

from unlearnkit.distributed.collectives import barrier
from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.experiments.config import Config
from unlearnkit.experiments.job import Job, earlier_results, exclusive, result_folder
from unlearnkit.experiments.search import Editor, checked_unlearner, hold_out_unseen
from unlearnkit.models.parameters import copy_of, digest
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.reporting import RunRecord
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.progress import Progress, silent


def run(
    config: Config,
    *,
    plugins: PluginManager | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    again: bool = False,
    progress: Progress = silent,
) -> Iterator[RunRecord]:
    """Run every method of a configuration, and yield its record as soon as it is written.

    Everything that can be checked is checked before the first minute of work. Each method's folder appears complete or
    not at all. With torch.distributed, the ranks share importances and evaluation, and rank 0 writes. ``dry_run`` edits
    in memory only, and measures and writes nothing; ``overwrite`` replaces folders of earlier results, and nothing
    else; ``again`` allows a forget set that was applied to the checkpoint already. No other run, tuning or comparison
    can write to the same output meanwhile. Called again after it was stopped, it keeps the results that are there. A
    method with ``tuned = true`` is tuned as by `tune`.
    """
    made = edits(config, plugins=plugins, dry_run=dry_run, overwrite=overwrite, again=again, progress=progress)
    for record, _ in made:
        yield record


def edits(
    config: Config,
    *,
    plugins: PluginManager | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    again: bool = False,
    progress: Progress = silent,
) -> Iterator[tuple[RunRecord, Tuning | None]]:
    """Run every method; yield its record, and its search if there was one."""
    plugins = plugins or default_manager()
    if dry_run:
        config = attrs.evolve(config, importance=attrs.evolve(config.importance, checkpoint=""))
    if not config.method:
        raise ConfigurationError("method: expected at least one [[method]], saw none: `unlearnkit methods` lists them")
    tuned = [method.label for method in config.method if method.tuned]
    if tuned and dry_run:
        raise ConfigurationError(
            f"method {tuned[0]!r}: expected fixed options for a dry run, saw tuned: a search makes all its edits"
        )
    for method in config.method:
        checked_unlearner(method, plugins, config.tuning)
    with nullcontext() if dry_run else exclusive(config.output):
        earlier = {} if dry_run else earlier_results(config, overwrite=overwrite)
        barrier()  # no process may write before all have looked for earlier results
        job = Job.start(config, plugins, again=again, progress=progress, references=not dry_run)
        job, unseen = hold_out_unseen(job) if tuned else (job, None)
        job.go_on(earlier)
        editor, before = Editor(job=job, unseen=unseen), dict[str, LossAndAccuracy]()
        editor.prepare(method for method in config.method if method.label not in earlier)
        for method in config.method:
            if method.label in earlier:
                yield earlier[method.label], None
                continue
            if not before and not dry_run:
                before = job.evaluate(job.original)
            model = copy_of(job.original)
            record, tuning = editor.edit(model, method)
            if record.nothing_edited:
                # `go_on` compares it with the original of the next run.
                report = attrs.evolve(record.report, model_before=digest(job.original))
                record = attrs.evolve(record, report=report, manifest=job.experiment.manifest())
            elif not dry_run:
                record = job.compared(job.evaluated(record, model, before), model)
            if not dry_run:
                job.write(result_folder(config, method.label), None if record.nothing_edited else model, record)
            yield record, tuning
        editor.forget_checkpoints()
