"""The comparison itself: what there is to do, what is done, and doing the rest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import final

import attrs
from rich.table import Table

from unlearnkit.distributed.collectives import all_gather, map_over_ranks
from unlearnkit.distributed.ranks import Ranks
from unlearnkit.experiments.comparison.pages import remark_lines, summary_page, summary_table
from unlearnkit.experiments.comparison.processes import in_processes
from unlearnkit.experiments.comparison.result import TrialResult
from unlearnkit.experiments.comparison.sizing import Sizing, need_of, of_ranks, sizing
from unlearnkit.experiments.comparison.summary import covers, long_table, summarise, unedited
from unlearnkit.experiments.comparison.table import Row, csv_of, table_of
from unlearnkit.experiments.comparison.trial import Trial, keyed, trials_of
from unlearnkit.experiments.comparison.trial_files import TrialFolder
from unlearnkit.experiments.comparison.work_units import Event, Unit, Watch, groups_of, models_for, unseen
from unlearnkit.experiments.comparison.worker import Worker
from unlearnkit.experiments.config import Config, plain
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.provenance import manifest
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.utils.errors import ConfigurationError, StoreError, UnlearnKitError
from unlearnkit.utils.files import atomic_write
from unlearnkit.utils.progress import Progress, silent

_DIED = (
    "the process died in this trial, without a word: killed by the system for want of memory, or a fault in a native "
    "library; try fewer --jobs, or a smaller batch size"
)


def compare(
    config: Config,
    *,
    plugins: PluginManager | None = None,
    jobs: int | None = 1,
    watch: Watch = unseen,
    progress: Progress = silent,
) -> "Comparison":
    """Do the trials of a comparison that are not done yet, and write its tables.

    Each result is on disk as its trial ends, so that a run that was stopped, however it was, goes on where it stopped.
    Trials that failed are tried again. The results depend on the configuration, the versions and the machine, not on
    ``jobs`` nor on what was done before.

    Args:
        config: With a section ``[comparison]``.
        plugins: Where names are looked up; other processes see installed plugins only.
        jobs: Processes; 1 works in this one, None chooses by cores and memory.
        watch: Is told of each start and end.
        progress: Shows a bar for each long stage, where this process does the work.

    Returns:
        The comparison, done.

    Raises:
        ConfigurationError: The configuration cannot be compared; nothing was done.
    """
    comparison = Comparison.plan(config, plugins=plugins)
    comparison.run(comparison.sizing(jobs).jobs, watch=watch, progress=progress)
    return comparison


@final
@attrs.frozen(kw_only=True, eq=False)
class Comparison:
    """A comparison: its trials, and what of them is on disk.

    Attributes:
        config: The configuration.
        trials: All of them, with their keys, in the order of the table.
        experiment: Data and device, loaded.
        plugins: Where names are looked up.
    """

    config: Config
    trials: tuple[Trial, ...] = attrs.field(repr=lambda trials: f"{len(trials)} trials")
    experiment: Experiment = attrs.field(repr=False)
    plugins: PluginManager = attrs.field(repr=False)

    @classmethod
    def plan(cls, config: Config, *, plugins: PluginManager | None = None) -> "Comparison":
        """Load the data and list the trials; everything that can be checked is checked, and nothing is done.

        Args:
            config: With a section ``[comparison]``.
            plugins: Where names are looked up.

        Returns:
            The comparison.

        Raises:
            ConfigurationError: An unknown split, metric, method or option, or nothing to compare.
        """
        plugins, trials = plugins or default_manager(), trials_of(config)
        experiment = Experiment.load(trials[0].config)
        bench = Worker(plugins, experiment=experiment)
        facts = manifest(config={}, data=experiment.bundle.train, device=experiment.device)
        common = {name: facts[name] for name in ("data_digest", "versions", "device")}
        return cls(
            config=config,
            trials=tuple(keyed(trial, {**common, **bench.facts(trial)}) for trial in trials),
            experiment=experiment,
            plugins=plugins,
        )

    @property
    def folder(self) -> Path:
        """Return where everything is written."""
        return Path(self.config.output)

    @property
    def results(self) -> Mapping[str, TrialResult]:
        """Return key to result, of the trials that ended."""
        rows = TrialFolder(folder=self.folder / "trials")
        found = {trial.key: rows.read(trial) for trial in self.trials}
        return {key: result for key, result in found.items() if result is not None}

    @property
    def pending(self) -> tuple[Trial, ...]:
        """Return what is to be done: trials without a result, and those that failed; of equal ones the first."""
        done = {key for key, result in self.results.items() if not result.failed}
        first: dict[str, Trial] = {}
        for trial in self.trials:
            if trial.key not in done:
                first.setdefault(trial.key, trial)
        return tuple(first.values())

    @property
    def failed(self) -> tuple[Trial, ...]:
        """Return the trials that ended with an error."""
        results = self.results
        return tuple(t for t in self.trials if t.key in results and results[t.key].failed)

    @property
    def covers(self) -> str:
        """Return what the spread of the summary is over, in words."""
        return covers(self.config)

    def rows(self) -> tuple[Row, ...]:
        """Return the table of the trials that ended.

        Returns:
            One row per trial.
        """
        results = self.results
        return table_of((trial, results[trial.key]) for trial in self.trials if trial.key in results)

    def table(self) -> Table:
        """Show one line per variant.

        Returns:
            A rich table.
        """
        rows = self.rows()
        return summary_table(summarise(rows), unedited(rows))

    def remarks(self) -> list[str]:
        """Say what the table does not: what changed nothing, destroyed the model, failed.

        Returns:
            A line for each variant of which there is anything to say.
        """
        return remark_lines(summarise(self.rows()))

    def sizing(self, jobs: int | None = None) -> Sizing:
        """Choose how many processes.

        Args:
            jobs: As many; None chooses by cores and memory.

        Returns:
            The choice, and why.
        """
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

    def run(self, jobs: int = 1, *, watch: Watch = unseen, progress: Progress = silent) -> None:
        """Do what is pending, and write the tables, even when it is stopped halfway.

        Where torch.distributed is in use, all its processes must call it: each does some of the work, and the first
        writes the tables. Then the folder must be one that all of them see.

        Args:
            jobs: Processes; 1 works in this one, and in those of torch.distributed.
            watch: Is told of each start and end in this process.
            progress: Shows a bar for each long stage, where this process does the work.

        Raises:
            ConfigurationError: Plugins that other processes do not see.
        """
        if jobs > 1 and self.plugins is not default_manager():
            raise ConfigurationError("jobs: other processes see installed plugins only: use jobs=1, or install them")
        try:
            if jobs == 1:
                bench = Worker(self.plugins, experiment=self.experiment, progress=progress)
                for wave in self._waves():
                    map_over_ranks(wave, lambda unit: unit.do(bench, watch))
            else:
                self._in_processes(jobs, watch)
        finally:
            if Ranks.current().rank == 0:
                self.write()

    @property
    def share(self) -> int:
        """Return how many trials this process will do itself, with those of torch.distributed where they are in use."""
        units = Ranks.current().share(self._waves()[-1])
        return sum(len(unit.trials) for unit in units)

    def _waves(self) -> tuple[tuple[Unit, ...], ...]:
        """List what the processes of torch.distributed do: models first, which several of them would wait for."""
        pending, folder, size = all_gather(self.pending)[0], self.folder / "trials", Ranks.current().size
        groups = groups_of(pending, folder, jobs=size)
        return (groups,) if size == 1 else (models_for(pending, folder), groups)

    def write(self) -> None:
        """Write ``trials.csv``, ``summary.csv``, ``summary.md`` and ``comparison.json`` of the trials that ended.

        Raises:
            StoreError: The folder cannot be written.
        """
        rows = self.rows()
        summaries, data = summarise(rows), self.experiment.bundle.train
        facts = manifest(config=plain(self.config), data=data, device=self.experiment.device)
        record = {"format": "unlearnkit-comparison-1", "trials": len(self.trials), "ended": len(rows), **facts}
        texts = {
            "trials.csv": csv_of(rows),
            "summary.csv": csv_of(long_table(summaries, covers=self.covers)),
            "summary.md": summary_page(summaries, unedited(rows), rows=rows, covers=self.covers),
            "comparison.json": json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n",
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self.folder}: {error}") from error
        for name, text in texts.items():
            with atomic_write(self.folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def _in_processes(self, jobs: int, watch: Watch) -> None:
        rows, ended = TrialFolder(folder=self.folder / "trials"), set[str]()

        def listen(event: Event) -> None:
            if event.kind != "started":
                ended.add(event.key)
            watch(event)

        while left := {trial.key: trial for trial in self.pending if trial.key not in ended}:
            models = models_for([*left.values()], rows.folder)
            waves = (models, groups_of(left.values(), rows.folder, jobs=jobs))
            died = in_processes(waves, jobs=jobs, watch=listen)
            if died is None:
                continue
            if jobs == 1:
                guilty = [left[event.key] for event in died if event.key in left]
                if not guilty:
                    raise UnlearnKitError("the processes die before they begin: run with --jobs 1 to see why")
                for trial in guilty:
                    rows.write(trial, TrialResult.failure(_DIED))
                    listen(Event(kind="failed", name=trial.name, key=trial.key))
            jobs = 1  # one trial at a time from here on: then it is known which one a process dies in
