"""Runs trials, in this process or in several; a process keeps what its trials share: data, models, importances."""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import wait as wait_for
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Literal, final

import attrs
import torch

from unlearnkit.data import forget_split
from unlearnkit.distributed.collectives import resolve_device
from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.experiments.comparison.trial import Trial, TrialResult, write_result
from unlearnkit.experiments.experiment import Experiment, make_metrics
from unlearnkit.experiments.job import Job
from unlearnkit.experiments.search import Editor, checked_unlearner, hold_out_unseen
from unlearnkit.experiments.train import cached_original, retrained_models
from unlearnkit.models import trainable
from unlearnkit.models.parameters import copy_of
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.utils.errors import UnlearnKitWarning
from unlearnkit.utils.memory import MIB, peak_memory, reset_peak
from unlearnkit.utils.options import option_values, parts_of
from unlearnkit.utils.progress import Progress, silent

_TICK = 0.1  # seconds between two looks at the events of other processes


@final
class Worker:
    """Runs the trials of one comparison in one process; consecutive trials of one `Trial.group` share importances."""

    def __init__(
        self, plugins: PluginManager, *, experiment: Experiment | None = None, progress: Progress = silent
    ) -> None:
        self._plugins = plugins
        self._provider_of = cache(plugins.provider_of)  # reads the files of installed distributions
        self._loaded = experiment
        self._progress = progress
        self._group: tuple[tuple[str, int, int], _Group | Exception] | None = None

    def facts(self, trial: Trial) -> dict[str, Any]:
        """Check a trial, and return what its result depends on beyond the configuration."""
        experiment, plugins = self._experiment(trial), self._plugins
        unlearner = checked_unlearner(trial.method, plugins, trial.config.tuning)
        estimator = experiment.estimator(plugins)
        metrics = make_metrics(trial.config, plugins).values()
        kinds: list[type] = [type(one) for one in (unlearner, *parts_of(unlearner).values(), estimator, *metrics)]
        return {
            "forget": experiment.forgotten.digest(),
            "method": [unlearner.name, trial.method.tuned, option_values(unlearner)],
            "estimator": [estimator.name, option_values(estimator)],
            "metrics": [[metric.name, option_values(metric)] for metric in metrics],
            "objective": experiment.objective.describe(),
            "providers": [self._provider_of(kind) for kind in kinds],
        }

    def train(self, trial: Trial, seed: int | None) -> bool:
        """Train a model of a trial, unless it is cached; False for an error, which the trials will meet again."""
        with _threads(trial.config.comparison.threads):
            try:
                experiment = self._experiment(trial)
                if seed is None:
                    cached_original(experiment, progress=self._progress)
                else:
                    retrained_models(experiment, [seed], progress=self._progress)
            except Exception:  # noqa: BLE001 - the result of the trials that need the model
                return False
        return True

    def run(self, trial: Trial) -> TrialResult:
        """Run a trial; an error becomes its result, except for Ctrl-C."""
        device = resolve_device(trial.config.device)
        reset_peak(device)
        try:
            with _threads(trial.config.comparison.threads), _collected_warnings() as remarks:
                result = self._group_of(trial).run(trial)
            result = attrs.evolve(result, remarks=tuple(dict.fromkeys([*result.remarks, *remarks])))
        except Exception as error:  # noqa: BLE001 - a failed trial is a row of the table, and the others go on
            result = TrialResult.failure(error)
        peak = attrs.asdict(peak_memory(device))
        return attrs.evolve(result, memory={where: size / MIB for where, size in peak.items() if size is not None})

    def _experiment(self, trial: Trial) -> Experiment:
        if self._loaded is None:
            self._loaded = Experiment.load(trial.config)
        spec = trial.config.forget.spec()
        assert spec is not None, "trials_of() refuses a comparison with nothing to forget"
        return attrs.evolve(self._loaded, config=trial.config, split=forget_split(self._loaded.bundle, spec))

    def _group_of(self, trial: Trial) -> "_Group":
        if self._group is None or self._group[0] != trial.group:
            made: _Group | Exception
            try:
                made = _Group.start(self._experiment(trial), self._plugins, self._progress)
            except Exception as error:  # noqa: BLE001 - raised below, for every trial of the group
                made = error
            self._group = (trial.group, made)
        if isinstance(self._group[1], Exception):
            raise self._group[1]
        return self._group[1]


@final
@attrs.frozen(kw_only=True, eq=False)
class _Group:
    """What the trials of one forget target, training seed and unlearning seed share."""

    editor: Editor
    before: dict[str, LossAndAccuracy]

    @classmethod
    def start(cls, experiment: Experiment, plugins: PluginManager, progress: Progress) -> "_Group":
        original = cached_original(experiment, progress=progress)
        retrained = retrained_models(experiment, progress=progress)
        job = Job(experiment=experiment, plugins=plugins, original=original, retrained=retrained, progress=progress)
        job, unseen = hold_out_unseen(job)
        return cls(editor=Editor(job=job, unseen=unseen), before=job.evaluate(job.original))

    def run(self, trial: Trial) -> TrialResult:
        job, method = self.editor.job, trial.method
        model = copy_of(job.original)
        record, tuning = self.editor.edit(model, method)
        if tuning is not None:
            remarks = (*record.report.remarks, tuning.sentence())
            record = attrs.evolve(record, report=attrs.evolve(record.report, remarks=remarks))
        record = job.evaluated(record, model, self.before)
        weights = sum(p.numel() for p in trainable(model).values())
        return TrialResult.of(record, weights=weights)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect unlearnkit's warnings as remarks of the trial; show all others."""
    remarks: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UnlearnKitWarning)
            yield remarks
    finally:
        for warning in caught:
            if issubclass(warning.category, UnlearnKitWarning):
                remarks.append(str(warning.message))
            else:
                warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


@final
@attrs.frozen(kw_only=True)
class Event:
    """The start or end of a trial, or of the training of a model."""

    kind: Literal["started", "done", "failed"]
    name: str
    key: str = ""
    process: int = attrs.field(factory=os.getpid)


Watch = Callable[[Event], None]
"""Called with every event."""


def ignore(_: Event) -> None:
    """Watch nothing."""


@final
@attrs.frozen(kw_only=True)
class Unit:
    """What one process does in one go: train a model, or run trials that share their importances."""

    trials: tuple[Trial, ...]
    folder: Path
    model: str = ""  # the model to train, in words
    seed: int | None = None  # of a retrained model

    def run(self, worker: Worker, watch: Watch) -> None:
        """Do the work; a trial's result is on disk before its end is reported."""
        for trial in self.trials:
            name, key = (self.model, "") if self.model else (trial.name, trial.key)
            watch(Event(kind="started", name=name, key=key))
            if self.model:
                done = worker.train(trial, self.seed)
            else:
                result = worker.run(trial)
                write_result(self.folder, trial, result)
                done = not result.failed
            watch(Event(kind="done" if done else "failed", name=name, key=key))


def run_in_processes(waves: Iterable[Iterable[Unit]], *, jobs: int, watch: Watch) -> tuple[Event, ...] | None:
    """Run units in fresh processes, wave by wave; returns None, or what was running when a process died."""
    context = multiprocessing.get_context("spawn")
    running: dict[int, Event] = {}
    events: SimpleQueue[Event] = context.SimpleQueue()
    others = set(multiprocessing.active_children())

    def receive() -> None:
        while not events.empty():
            event = events.get()
            running.pop(event.process, None)
            if event.kind == "started":
                running[event.process] = event
            watch(event)

    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_initialise, initargs=(events,))
    try:
        for wave in waves:
            with _sigint_blocked():
                left = {pool.submit(_run, unit) for unit in wave}
            while left:
                ended, left = wait(left, timeout=_TICK, return_when=FIRST_COMPLETED)
                receive()
                for future in ended:
                    future.result()
        receive()
    except BrokenProcessPool:
        receive()
        return tuple(running.values())
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return None


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Spawn workers with SIGINT blocked: the parent stops them. One that comes meanwhile is raised at the end."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows no process inherits it
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: list[tuple[Worker, Watch]] = []  # of this process, when it is one of a pool


def _initialise(events: "SimpleQueue[Event]") -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker[:] = [(Worker(default_manager()), events.put)]


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        time.sleep(_TICK)
        os._exit(1)  # without this, the workers of a killed parent would wait for ever


def _run(unit: Unit) -> None:
    unit.run(*_worker[0])
