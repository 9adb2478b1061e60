"""A comparison: its trials, which of them have results, and running the rest in as many processes as fit."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import attrs
import torch
from rich.table import Table
from torch import nn

from unlearnkit.distributed import Ranks, all_gather, map_over_ranks
from unlearnkit.experiments.comparison import tables
from unlearnkit.experiments.comparison.trial import Trial, TrialResult, keyed, read_result, trials_of, write_result
from unlearnkit.experiments.comparison.worker import Event, Unit, Watch, Worker, ignore, run_in_processes
from unlearnkit.experiments.config import TABLES, Config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.job import exclusive
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.utils import display
from unlearnkit.utils.errors import ConfigurationError, StoreError, UnlearnKitError
from unlearnkit.utils.files import read_text, write_text
from unlearnkit.utils.memory import MIB, free_memory
from unlearnkit.utils.progress import Progress, silent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DIED = (
    "the process died in this trial, without a message: killed by the system for lack of memory, or by a fault in a "
    "native library; try fewer --jobs, or a smaller batch size"
)
_FORMAT, _RECORD = "unlearnkit-comparison-1", "comparison.json"
_COPIES = 12  # of a trial besides its retrained models: original, edited copy, optimiser, importances
_PROCESS = 900 * MIB  # Python with torch, scikit-learn and small data, resident


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
@attrs.frozen(kw_only=True)
class Sizing:
    """How many processes, and why."""

    jobs: int
    why: str


def need_of(model: nn.Module, *, retrained: int, peaks: Iterable[float] = ()) -> tuple[int, str]:
    """Estimate the memory of a process in bytes, and say where the estimate comes from."""
    seen = max(peaks, default=0.0)
    if seen:
        return int(seen * MIB), "the highest peak of the trials that are done"
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return _PROCESS + size * (_COPIES + retrained), "estimated from the size of the model; activations not counted"


def sizing(
    jobs: int | None, *, threads: int, units: int, device: torch.device, need: tuple[int, str], free: int | None = None
) -> Sizing:
    """Choose the number of processes, by cores and free memory unless it is given."""
    if jobs is not None:
        return Sizing(jobs=jobs, why=f"{_count(jobs, threads)}, as asked for")
    one = _count(1, threads)
    if device.type != "cpu":
        return Sizing(jobs=1, why=f"{one}: the trials share one {device.type} device (--jobs N for more)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = free_memory() if free is None else free
    if free is None:
        return Sizing(jobs=1, why=f"{one}: this system does not say how much memory is free (--jobs N for more)")
    by_memory = int(0.9 * free / max(need[0], 1))
    chosen = max(1, min(cores // threads, by_memory, units))
    why = (
        f"{_count(chosen, threads)}: {cores} cores, {free / MIB:,.0f} MiB free, {need[0] / MIB:,.0f} MiB a process "
        f"({need[1]}), {units} units of work"
    )
    if chosen * threads < min(cores, units):
        why += f"; {cores - chosen * threads} cores idle (comparison.threads uses them inside a trial)"
    return Sizing(jobs=chosen, why=why)


def of_ranks(jobs: int | None, *, ranks: int, threads: int) -> Sizing:
    """Return the processes that torchrun has started, each of which works by itself."""
    if jobs not in {None, 1}:
        raise ConfigurationError(f"--jobs: expected none with the {ranks} processes of torchrun, saw {jobs}")
    return Sizing(jobs=1, why=f"{_count(ranks, threads)}, as torchrun has started")


def _count(jobs: int, threads: int) -> str:
    return f"{jobs} process{'es' if jobs > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"


@final
@attrs.frozen(kw_only=True, eq=False)
class Comparison:
    """The trials of a comparison, and their results on disk; a notebook shows a row for each variant."""

    config: Config = attrs.field(repr=lambda config: repr(config.output))
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
        common = {name: facts[name] for name in ("data_digest", "test_data_digest", "versions", "device")}
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

    def _repr_html_(self) -> str:
        rows = self.rows()
        header, lines = tables.lines_of(tables.summarise(rows), tables.unedited(rows), short=True)
        done = f"{len(rows)} of {len(self.trials)} trials have ended; {self.covers}."
        return display.paragraphs(done) + display.table(header, lines)

    def to_frame(self) -> Any:
        """Return a pandas data frame with a row for each trial that has ended; see `rows`."""
        return display.frame(self.rows())

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the mean forget accuracy of each variant against its retain accuracy, and those of the original.

        On matplotlib axes, new ones by default, which are returned.
        """
        return tables.accuracy_plot(axes, self.rows())

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
            need=need_of(self.experiment.fresh_model(pretrained=False), retrained=retrained, peaks=peaks),
        )

    def run(self, jobs: int = 1, *, watch: Watch = ignore, progress: Progress = silent) -> None:
        """Run the pending trials, shared by all ranks, and write the tables, also when it is interrupted."""
        if jobs > 1 and self.plugins is not default_manager():
            raise ConfigurationError("jobs: other processes see installed plugins only: use jobs=1, or install them")
        with exclusive(self.config.output):
            self._check_tables()
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

    def _check_tables(self) -> None:
        """Refuse to write over tables that no comparison has written."""
        found = [name for name in (_RECORD, *TABLES) if os.path.lexists(self.folder / name)]
        try:
            earlier = json.loads(read_text(self.folder / _RECORD))["format"] == _FORMAT
        except (OSError, ValueError, LookupError, TypeError, RecursionError, StoreError):
            earlier = False
        if found and not earlier:
            raise StoreError(
                f"{self.folder}: expected the tables of an earlier comparison or none, saw {', '.join(found)} without "
                f"its {_RECORD}: choose another output, or move them away"
            )

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
        """Write the tables and ``comparison.json`` of the finished trials."""
        rows = self.rows()
        summaries = tables.summarise(rows)
        record = {
            "format": _FORMAT,
            "trials": len(self.trials),
            "ended": len(rows),
            **self.experiment.manifest(),
            "config": attrs.asdict(self.config),
        }
        texts = {
            _RECORD: json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n",
            "trials.csv": tables.csv_of(rows),
            "summary.csv": tables.csv_of(tables.long_table(summaries, covers=self.covers)),
            "summary.md": tables.summary_page(summaries, tables.unedited(rows), rows=rows, covers=self.covers),
            "summary.html": tables.summary_html(summaries, tables.unedited(rows), rows=rows, covers=self.covers),
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


def models_for(trials: Sequence[Trial], folder: Path) -> tuple[Unit, ...]:
    originals: dict[int, Unit] = {}
    retrained: dict[tuple[str, int], Unit] = {}
    for trial in trials:
        training, unit = trial.config.training.seed, Unit(trials=(trial,), folder=folder)
        originals.setdefault(training, attrs.evolve(unit, model=f"original · training seed {training}"))
        for seed in trial.config.evaluation.retrained_seeds:
            name = f"retrained without {trial.forget} · training seed {seed}"
            retrained.setdefault((trial.forget, seed), attrs.evolve(unit, model=name, seed=seed))
    return (*originals.values(), *retrained.values())


def groups_of(trials: Iterable[Trial], folder: Path, *, jobs: int) -> tuple[Unit, ...]:
    """Put trials that share importances into one unit; split units when processes would be idle."""
    groups: dict[tuple[str, int, int], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.group, []).append(trial)
    parts = max(1, -(-jobs // len(groups))) if groups else 1
    return tuple(
        Unit(trials=tuple(group[i::parts]), folder=folder)
        for group in groups.values()
        for i in range(min(parts, len(group)))
    )
