"""A comparison: its trials, which of them have results, and running the rest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import final

import attrs
from rich.table import Table

from unlearnkit.distributed import Ranks, all_gather, map_over_ranks
from unlearnkit.experiments.comparison import tables
from unlearnkit.experiments.comparison.processes import Sizing, need_of, of_ranks, run_in_processes, sizing
from unlearnkit.experiments.comparison.trial import Trial, TrialResult, keyed, read_result, trials_of, write_result
from unlearnkit.experiments.comparison.worker import Event, Unit, Watch, Worker, groups_of, ignore, models_for
from unlearnkit.experiments.config import Config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.utils.errors import ConfigurationError, UnlearnKitError
from unlearnkit.utils.files import write_text
from unlearnkit.utils.progress import Progress, silent

_DIED = (
    "the process died in this trial, without a message: killed by the system for lack of memory, or by a fault in a "
    "native library; try fewer --jobs, or a smaller batch size"
)


def compare(
    config: Config,
    *,
    plugins: PluginManager | None = None,
    jobs: int | None = 1,
    watch: Watch = ignore,
    progress: Progress = silent,
) -> "Comparison":
    """Run the trials of a comparison that have no result yet or failed, write its tables, and return it.

    Each result is written as its trial ends, so that a comparison can be stopped and continued. The results depend on
    the configuration, the versions and the machine, not on earlier trials nor on ``jobs``: how many processes, where 1
    is this one, and None chooses by cores and memory. ``watch`` is called at the start and the end of each trial.
    """
    comparison = Comparison.plan(config, plugins=plugins)
    comparison.run(comparison.sizing(jobs).jobs, watch=watch, progress=progress)
    return comparison


@final
@attrs.frozen(kw_only=True, eq=False)
class Comparison:
    """The trials of a comparison, and their results on disk."""

    config: Config
    trials: tuple[Trial, ...] = attrs.field(repr=lambda trials: f"{len(trials)} trials")
    experiment: Experiment = attrs.field(repr=False)
    plugins: PluginManager = attrs.field(repr=False)

    @classmethod
    def plan(cls, config: Config, *, plugins: PluginManager | None = None) -> "Comparison":
        """Load the data, list the trials and check everything that can be checked, without running anything."""
        plugins, trials = plugins or default_manager(), trials_of(config)
        experiment = Experiment.load(trials[0].config)
        worker = Worker(plugins, experiment=experiment)
        facts = experiment.manifest()
        common = {name: facts[name] for name in ("data_digest", "versions", "device")}
        return cls(
            config=config,
            trials=tuple(keyed(trial, {**common, **worker.facts(trial)}) for trial in trials),
            experiment=experiment,
            plugins=plugins,
        )

    @property
    def folder(self) -> Path:
        return Path(self.config.output)

    @property
    def results(self) -> Mapping[str, TrialResult]:
        """Key to result, of the finished trials."""
        found = {trial.key: read_result(self._files, trial) for trial in self.trials}
        return {key: result for key, result in found.items() if result is not None}

    @property
    def pending(self) -> tuple[Trial, ...]:
        """The trials without a result, and those that failed; of equal ones the first."""
        done = {key for key, result in self.results.items() if not result.failed}
        first: dict[str, Trial] = {}
        for trial in self.trials:
            if trial.key not in done:
                first.setdefault(trial.key, trial)
        return tuple(first.values())

    @property
    def failed(self) -> tuple[Trial, ...]:
        results = self.results
        return tuple(t for t in self.trials if t.key in results and results[t.key].failed)

    @property
    def covers(self) -> str:
        """What varies between the trials of a variant, in words."""
        return tables.covers(self.config)

    def rows(self) -> tuple[tables.Row, ...]:
        """Return one row per finished trial."""
        results = self.results
        return tables.table_of((trial, results[trial.key]) for trial in self.trials if trial.key in results)

    def table(self) -> Table:
        """Return a table for the terminal: one line per variant."""
        rows = self.rows()
        return tables.summary_table(tables.summarise(rows), tables.unedited(rows))

    def remarks(self) -> list[str]:
        """Say which variants changed nothing, destroyed the model or failed, one line each."""
        return [f"{s.variant}: {s.remarks} (of {s.trials})" for s in tables.summarise(self.rows()) if s.remarks]

    def sizing(self, jobs: int | None = None) -> Sizing:
        """Choose the number of processes: ``jobs``, or by cores and memory where it is None."""
        ranks, threads = Ranks.current(), self.config.comparison.threads
        if ranks.size > 1:
            return of_ranks(jobs, ranks=ranks.size, threads=threads)
        peaks = [result.memory.get("host", 0.0) for result in self.results.values()]
        retrained = len(self.trials[0].config.evaluation.retrained_seeds)
        return sizing(
            jobs,
            threads=threads,
            units=max(len(self.pending), 1),
            device=self.experiment.device,
            need=need_of(self.experiment.fresh_model(), retrained=retrained, peaks=peaks),
        )

    def run(self, jobs: int = 1, *, watch: Watch = ignore, progress: Progress = silent) -> None:
        """Run the pending trials, shared by all ranks, and write the tables, also when it is interrupted."""
        if jobs > 1 and self.plugins is not default_manager():
            raise ConfigurationError("jobs: other processes see installed plugins only: use jobs=1, or install them")
        try:
            if jobs == 1:
                worker = Worker(self.plugins, experiment=self.experiment, progress=progress)
                for wave in self._waves():
                    map_over_ranks(wave, lambda unit: unit.run(worker, watch))
            else:
                self._in_processes(jobs, watch)
        finally:
            if Ranks.current().rank == 0:
                self.write()

    @property
    def share(self) -> int:
        """How many trials this process will run itself."""
        units = Ranks.current().share(self._waves()[-1])
        return sum(len(unit.trials) for unit in units)

    @property
    def _files(self) -> Path:
        return self.folder / "trials"

    def _waves(self) -> tuple[tuple[Unit, ...], ...]:
        """List the units of the ranks: models first, which several of them would wait for."""
        pending, folder, size = all_gather(self.pending)[0], self._files, Ranks.current().size
        groups = groups_of(pending, folder, jobs=size)
        return (groups,) if size == 1 else (models_for(pending, folder), groups)

    def write(self) -> None:
        """Write ``trials.csv``, ``summary.csv``, ``summary.md`` and ``comparison.json`` of the finished trials."""
        rows = self.rows()
        summaries = tables.summarise(rows)
        record = {
            "format": "unlearnkit-comparison-1",
            "trials": len(self.trials),
            "ended": len(rows),
            **self.experiment.manifest(),
            "config": attrs.asdict(self.config),
        }
        texts = {
            "trials.csv": tables.csv_of(rows),
            "summary.csv": tables.csv_of(tables.long_table(summaries, covers=self.covers)),
            "summary.md": tables.summary_page(summaries, tables.unedited(rows), rows=rows, covers=self.covers),
            "comparison.json": json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n",
        }
        for name, text in texts.items():
            write_text(self.folder / name, text)

    def _in_processes(self, jobs: int, watch: Watch) -> None:
        ended = set[str]()

        def note(event: Event) -> None:
            if event.kind != "started":
                ended.add(event.key)
            watch(event)

        while left := {trial.key: trial for trial in self.pending if trial.key not in ended}:
            pending, folder = left.values(), self._files
            waves = (models_for([*pending], folder), groups_of(pending, folder, jobs=jobs))
            running = run_in_processes(waves, jobs=jobs, watch=note)
            if running is None:
                continue
            if jobs == 1:
                died = [left[event.key] for event in running if event.key in left]
                if not died:
                    raise UnlearnKitError("the processes die before they begin: run with --jobs 1 to see why")
                for trial in died:
                    write_result(self._files, trial, TrialResult.failure(_DIED))
                    note(Event(kind="failed", name=trial.name, key=trial.key))
            jobs = 1  # from here on one trial at a time, so that it is known in which one a process dies
