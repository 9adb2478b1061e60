"""Does trials one after the other, and keeps between them what they share: data, models, importances."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import attrs
import torch
from torch import nn

from unlearnkit.data import LabelledImages, forget_split
from unlearnkit.distributed.ranks import resolve_device
from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.experiments.comparison.result import TrialResult
from unlearnkit.experiments.comparison.trial import Trial
from unlearnkit.experiments.experiment import Experiment, forget_spec, make_metrics, make_unlearner
from unlearnkit.experiments.retrained import kept_original, retrained_models
from unlearnkit.experiments.run import Job
from unlearnkit.experiments.tune import Search, elementwise, set_aside
from unlearnkit.importance.importance import Importance
from unlearnkit.models.parameters import trainable
from unlearnkit.plugins.manager import PluginManager
from unlearnkit.reporting import RunRecord
from unlearnkit.unlearning.unlearner import Need
from unlearnkit.utils.errors import UnlearnKitWarning
from unlearnkit.utils.memory import MIB, peak_memory, reset_peak
from unlearnkit.utils.options import option_values
from unlearnkit.utils.progress import Progress, silent


@final
class Worker:
    """Does the trials of one comparison in one process.

    Trials that share forget target and seeds are cheapest one after the other. No result depends on what was done
    before it.
    """

    def __init__(
        self, plugins: PluginManager, *, experiment: Experiment | None = None, progress: Progress = silent
    ) -> None:
        self._plugins = plugins
        self._loaded = experiment
        self._progress = progress
        self._stage: tuple[tuple[str, int, int], _Stage | Exception] | None = None

    def facts(self, trial: Trial) -> dict[str, Any]:
        """Check a trial, and say what its result depends on that the configuration does not say."""
        experiment, plugins = self._experiment(trial), self._plugins
        assert experiment.split is not None, "_experiment() sets it"
        make = elementwise if trial.method.tuned else make_unlearner
        unlearner, estimator = make(trial.method, plugins), experiment.estimator(plugins)
        metrics = make_metrics(trial.config.evaluation, plugins).values()
        return {
            "forget": experiment.split.train.digest(),
            "method": [unlearner.name, trial.method.tuned, option_values(unlearner)],
            "estimator": [estimator.name, option_values(estimator)],
            "metrics": [[metric.name, option_values(metric)] for metric in metrics],
            "objective": experiment.objective.describe(),
            "providers": [
                plugins.provider_of(kind) for kind in (type(unlearner), type(estimator), *map(type, metrics))
            ],
        }

    def train(self, trial: Trial, seed: int | None) -> None:
        """Train a model that trials need, unless it is kept already."""
        with _threads(trial.config.comparison.threads):
            experiment = self._experiment(trial)
            if seed is None:
                kept_original(experiment, progress=self._progress)
            else:
                retrained_models(experiment, [seed], progress=self._progress)

    def do(self, trial: Trial) -> TrialResult:
        """Do a trial; whatever goes wrong in it is its result, Ctrl-C excepted."""
        device = resolve_device(trial.config.device)
        reset_peak(device)
        try:
            with _threads(trial.config.comparison.threads), _heard() as said:
                result = self._stage_of(trial).do(trial)
            result = attrs.evolve(result, remarks=tuple(dict.fromkeys([*result.remarks, *said])))
        except Exception as error:  # noqa: BLE001 - a trial that fails is a row of the table, and the others go on
            result = TrialResult.failure(error)
        peak = attrs.asdict(peak_memory(device))
        return attrs.evolve(result, memory={where: size / MIB for where, size in peak.items() if size is not None})

    def _experiment(self, trial: Trial) -> Experiment:
        if self._loaded is None:
            self._loaded = Experiment.load(trial.config)
        spec = forget_spec(trial.config.forget)
        assert spec is not None, "trials_of() refuses a comparison with nothing to forget"
        return attrs.evolve(self._loaded, config=trial.config, split=forget_split(self._loaded.bundle, spec))

    def _stage_of(self, trial: Trial) -> "_Stage":
        if self._stage is None or self._stage[0] != trial.group:
            made: _Stage | Exception
            try:
                made = _Stage.start(self._experiment(trial), self._plugins, self._progress)
            except Exception as error:  # noqa: BLE001 - raised below, for every trial of the group
                made = error
            self._stage = (trial.group, made)
        stage = self._stage[1]
        if isinstance(stage, Exception):
            raise stage
        return stage


@final
@attrs.frozen(kw_only=True, eq=False)
class _Stage:
    """What the trials of one forget target, training seed and unlearning seed share."""

    job: Job
    unseen: LabelledImages | None
    before: dict[str, LossAndAccuracy]
    importances: dict[Need, Importance] = attrs.field(factory=dict)
    searches: list[Search] = attrs.field(factory=list)

    @classmethod
    def start(cls, experiment: Experiment, plugins: PluginManager, progress: Progress) -> "_Stage":
        job, unseen = set_aside(
            Job(
                experiment=experiment,
                plugins=plugins,
                original=kept_original(experiment, progress=progress),
                retrained=retrained_models(experiment, progress=progress),
                requests=[],
                progress=progress,
            )
        )
        return cls(job=job, unseen=unseen, before=job.evaluate(job.original))

    def do(self, trial: Trial) -> TrialResult:
        model = copy.deepcopy(self.job.original)
        made, found = self._tuned(trial, model) if trial.method.tuned else (self._fixed(trial, model), True)
        record = self.job.evaluated(made, model, self.before)
        weights = sum(p.numel() for p in trainable(model).values())
        return TrialResult.of(record, weights=weights, no_candidate=not found)

    def _fixed(self, trial: Trial, model: nn.Module) -> RunRecord:
        unlearner = make_unlearner(trial.method, self.job.plugins)
        shared = {Need.FORGET_IMPORTANCE, Need.REFERENCE_IMPORTANCE} & unlearner.needs
        for need in (Need.FORGET_IMPORTANCE, Need.REFERENCE_IMPORTANCE):
            if need in shared and need not in self.importances:
                self.importances.update(self.job.importances({need}))
        stages = {
            Need.FORGET_IMPORTANCE: "forget importance",
            Need.REFERENCE_IMPORTANCE: f"{trial.config.importance.reference} importance",
        }
        mine = {stages[need]: self.job.seconds[stages[need]] for need in stages if need in shared}
        job = attrs.evolve(self.job, seconds=mine)
        return job.edit(model, trial.method, unlearner, {need: self.importances[need] for need in shared})

    def _tuned(self, trial: Trial, model: nn.Module) -> tuple[RunRecord, bool]:
        if not self.searches:
            self.searches.append(Search.start(self.job, self.unseen))
        search = self.searches[0]
        tuning, report = search.edit(model, elementwise(trial.method, self.job.plugins), trial.method)
        report = attrs.evolve(report, remarks=(*report.remarks, tuning.sentence()))
        return search.described(trial.method.label, tuning, report), tuning.chosen is not None


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect the warnings of unlearnkit, which are a trial's remarks, and pass on all others."""
    said: list[str] = []
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
            if issubclass(category, UnlearnKitWarning):
                said.append(str(message))
            else:
                shown(message, category, *place, **more)  # type: ignore[arg-type]

        warnings.showwarning = show
        warnings.simplefilter("always", UnlearnKitWarning)
        yield said
