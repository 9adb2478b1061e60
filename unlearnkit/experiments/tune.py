"""Tuning from a configuration: the right edit of one method, its checkpoint, and everything that was tried."""

import copy
import time
from pathlib import Path
from typing import final

import attrs
import numpy as np
from sklearn.model_selection import train_test_split
from torch import nn

from unlearnkit.data import LabelledImages, forget_split
from unlearnkit.data.splits import ValidationSplit, validation_split
from unlearnkit.distributed.collectives import barrier, raise_on_all_ranks
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.evaluation.tuning import Tuner, Tuning, Validation
from unlearnkit.experiments.config import Config, MethodConfig, TuningConfig
from unlearnkit.experiments.experiment import Experiment, chosen_method, forget_spec, make_unlearner
from unlearnkit.experiments.provenance import forget_record
from unlearnkit.experiments.run import Job, aligned
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import Role
from unlearnkit.models.objective import CrossEntropy
from unlearnkit.plugins.hookspecs import Run
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.reporting import RunRecord
from unlearnkit.unlearning.elementwise import ElementwiseUnlearner
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.unlearner import Need
from unlearnkit.utils.errors import ConfigurationError, StoreError
from unlearnkit.utils.options import option_values
from unlearnkit.utils.progress import Progress, silent

_REESTIMATE = {"both": (False, True), "yes": (True,), "no": (False,)}


@final
@attrs.frozen(kw_only=True, eq=False)
class Tuned:
    """What a search from a configuration leaves behind."""

    tuning: Tuning
    record: RunRecord
    folder: Path


def tune(
    config: Config,
    *,
    plugins: PluginManager | None = None,
    overwrite: bool = False,
    again: bool = False,
    progress: Progress = silent,
) -> Tuned:
    """Find the right edit with one method, make it on a copy of the original model, and write both.

    The validation samples are carved from the forget set and from the retain set of the training data; importances are
    measured on the rest, in the search and in the final edit alike. (The original was trained on all of them, so its
    accuracy on them is that on training data.) The test set is looked at once, after the choice. Only the target
    ``"unseen"`` takes part of it away first; then all test scores are of the remaining part.

    Where torch.distributed is in use, importances, candidates and evaluation are shared out among its processes: the
    same are tried and the same one is chosen; every process makes that edit, and rank 0 writes.

    Args:
        config: The configuration.
        plugins: Where names are looked up.
        overwrite: Replace the folder of an earlier result.
        again: Apply a forget set that the checkpoint says was applied to it already.
        progress: Shows a bar for each long stage.

    Returns:
        The result. Without a candidate within the budget no model is written, and the record says so.

    Raises:
        StoreError: The folder of results is in the way.
        ConfigurationError: The method has a grid, or cannot be tuned.
    """
    plugins = plugins or default_manager()
    method = chosen_method(config, config.tuning.method, key="tuning.method")
    unlearner = elementwise(method, plugins)
    folder = Path(config.output) / f"{method.label}-tuned"
    if folder.exists() and not overwrite:
        raise StoreError(f"results are there already: {folder}: choose another output, or overwrite them")
    barrier()  # as in run()
    job, unseen = set_aside(Job.start(config, plugins, again=again, progress=progress))
    search = Search.start(job, unseen)
    model = copy.deepcopy(job.original)
    tuning, report = search.edit(model, unlearner, method)
    report = attrs.evolve(report, seconds={**job.seconds, **report.seconds})
    record = search.record(folder.name, tuning, report, model)
    if config.evaluation.page and tuning.chosen is not None:
        record = search.job.gallery().illustrated(record, model)
    job.write(folder, model if tuning.chosen else None, record)
    job.forget_checkpoints(stage="tune")
    return Tuned(tuning=tuning, record=record, folder=folder)


@final
@attrs.frozen(kw_only=True, eq=False)
class Search:
    """The validation split of one original model, and the importances beside it, for as many methods as one likes."""

    job: Job
    carved: ValidationSplit
    unseen: LabelledImages | None
    known: dict[Role, Importance] = attrs.field(factory=dict, repr=False)
    seconds: dict[str, float] = attrs.field(factory=dict)

    @classmethod
    def start(cls, job: Job, unseen: LabelledImages | None = None) -> "Search":
        """Carve the validation split."""
        objective, config = job.experiment.objective, job.experiment.config.tuning
        if not isinstance(objective, CrossEntropy):
            raise ConfigurationError(
                f"objective: `tune` chooses by accuracy: expected a CrossEntropy, saw {objective.describe()}"
            )
        if config.target == "retrained" and not job.retrained:
            raise ConfigurationError(
                "tuning.target 'retrained': expected retrained models, saw none: name checkpoints in "
                "evaluation.retrained, or training seeds in evaluation.retrained_seeds"
            )
        split = job.experiment.split
        assert split is not None, "Job.start() asked for the splits, which need it"
        targets, seed = job.experiment.bundle.train.targets, job.experiment.config.seed
        carved = validation_split(split.train, targets, fraction=config.validation_fraction, seed=seed)
        return cls(job=job, carved=carved, unseen=unseen)

    def edit(self, model: nn.Module, unlearner: ElementwiseUnlearner, method: MethodConfig) -> tuple[Tuning, Report]:
        """Search, edit with what was found, and tell the observers."""
        plugins = self.job.plugins
        run = Run(
            method=unlearner.name,
            options=option_values(unlearner),
            estimator=self.job.experiment.config.importance.estimator,
            model=type(model).__qualname__,
        )
        plugins.before_run(run)
        with raise_on_all_ranks():
            tuning = self._tune(model, unlearner, method)
        report = tuning.report or Report(method=unlearner.name, remarks=(tuning.sentence(),))
        report = aligned(report, model)
        # The edit is part of the search: each second is counted once.
        looked = tuning.seconds - sum(report.seconds.values())
        report = attrs.evolve(
            report,
            provider=plugins.provider_of(type(unlearner)),
            seconds={**self.seconds, "tuning": looked, **report.seconds},
        )
        if tuning.chosen is not None:
            plugins.after_run(run, report)
        return tuning, report

    def _tune(self, model: nn.Module, unlearner: ElementwiseUnlearner, method: MethodConfig) -> Tuning:
        experiment, config = self.job.experiment, self.job.experiment.config.tuning
        forget, reference = self._importances(unlearner, method)
        target, source = self._target(config)
        tuner = Tuner(
            unlearner=unlearner,
            operating=config.operating,
            strength=config.strength or None,
            fractions=config.fractions,
            strengths=config.strengths,
            reestimate=_REESTIMATE[config.reestimate],
            budget=config.budget,
            rounds=config.rounds,
        )
        return tuner.tune(
            model,
            forget=forget,
            reference=reference,
            validation=Validation(
                retain=experiment.shared_batches(self._part(self.carved.retain_validation)),
                forget=experiment.shared_batches(self._part(self.carved.forget_validation)),
            ),
            target=target,
            target_source=source,
            retain_data=experiment.evaluation_batches(self._part(self.carved.retain)),
            objective=experiment.objective,
            seed=experiment.config.seed,
            max_fraction=method.max_fraction,
            together=True,
            progress=self.job.progress,
        )

    def _part(self, rows: np.ndarray) -> LabelledImages:
        return self.job.experiment.bundle.train.subset(rows)

    def _importances(
        self, unlearner: ElementwiseUnlearner, method: MethodConfig
    ) -> tuple[Importance, Importance | None]:
        experiment = self.job.experiment
        estimator, role = experiment.estimator(self.job.plugins), Role(experiment.config.importance.reference)

        def estimate(rows: np.ndarray, role: Role) -> Importance:
            if role not in self.known:
                start = time.perf_counter()
                self.known[role] = self.job.importance(estimator, self._part(rows), role, stage="tune")
                self.seconds[f"{role.value} importance"] = time.perf_counter() - start
            return self.known[role] if method.normalise else self.known[role].unnormalised()

        forget = estimate(self.carved.forget, Role.FORGET)
        if Need.REFERENCE_IMPORTANCE not in unlearner.needs:
            return forget, None
        return forget, estimate(self.carved.full if role is Role.FULL else self.carved.retain, role)

    def _target(self, config: TuningConfig) -> tuple[float, str]:
        if config.target == "stated":
            return config.forget_accuracy, "stated"
        if self.unseen is not None:
            what = f"the original's on {len(self.unseen)} samples of the same kind that it was not trained on"
            return _accuracy(self.job.experiment, self.job.original, self.unseen), what
        data = self._part(self.carved.forget_validation)
        found = [_accuracy(self.job.experiment, model, data) for model in self.job.retrained]
        return float(np.mean(found)), f"the mean of {len(found)} retrained models on the same samples"

    def record(self, label: str, tuning: Tuning, report: Report, model: nn.Module) -> RunRecord:
        """Measure an edited model; without an edit there is nothing to measure."""
        record = self.described(label, tuning, report)
        if tuning.chosen is None:
            return attrs.evolve(record, manifest=self.job.manifest())
        return self.job.evaluated(record, model, self.job.evaluate(self.job.original))

    def described(self, label: str, tuning: Tuning, report: Report) -> RunRecord:
        """Put down what was tried, without measuring."""
        split = self.job.experiment.split
        assert split is not None, "Job.start() asked for the splits, which need it"
        return RunRecord(label=label, report=report, forget=forget_record(split.train), tuning=self._described(tuning))

    def _described(self, tuning: Tuning) -> dict[str, object]:
        carved = self.carved
        samples = {
            "forget importance": len(carved.forget),
            "retain importance": len(carved.retain),
            "forget validation": len(carved.forget_validation),
            "retain validation": len(carved.retain_validation),
            "unseen": 0 if self.unseen is None else len(self.unseen),
        }
        return {**tuning.to_dict(), "samples": samples}


def elementwise(method: MethodConfig, plugins: PluginManager) -> ElementwiseUnlearner:
    """Make a method that can be tuned."""
    unlearner = make_unlearner(method, plugins)
    if not isinstance(unlearner, ElementwiseUnlearner):
        raise ConfigurationError(
            f"tuning.method {method.label!r}: expected an elementwise method, whose edits cost no training, saw "
            f"{method.name!r}"
        )
    return unlearner


def _accuracy(experiment: Experiment, model: nn.Module, data: LabelledImages) -> float:
    batches = experiment.shared_batches(data)
    found = loss_and_accuracy(model, batches, objective=experiment.objective).accuracy
    assert found is not None, "_Search.start() refuses an objective without classes"
    return found


def set_aside(job: Job) -> tuple[Job, LabelledImages | None]:
    """For the target ``"unseen"``: take part of the test set out of it, so that it can set the target."""
    experiment, config = job.experiment, job.experiment.config
    if config.tuning.target != "unseen":
        return job, None
    test, spec = experiment.bundle.test, forget_spec(config.forget)
    assert spec is not None, "a job has something to forget"
    rest, aside = train_test_split(
        np.arange(len(test)),
        test_size=config.tuning.unseen_fraction,
        random_state=config.seed,
        stratify=test.targets.numpy(),
    )
    bundle = attrs.evolve(experiment.bundle, test=test.subset(np.sort(rest)))
    part = attrs.evolve(experiment.bundle, test=test.subset(np.sort(aside)))
    rows = forget_split(part, spec).test.forget
    if spec.carries_over and not len(rows):
        raise ConfigurationError("tuning.target 'unseen': the test set has no sample of what is forgotten")
    unseen = part.test.subset(rows) if spec.carries_over else part.test
    left = attrs.evolve(experiment, bundle=bundle, split=forget_split(bundle, spec))
    return attrs.evolve(job, experiment=left), unseen
