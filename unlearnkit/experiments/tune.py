"""Tuning from a configuration: the right edit of one method, its checkpoint, and everything that was tried."""

import copy
import hashlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import final

import attrs
import numpy as np
from torch import nn

from unlearnkit.data import LabelledImages, forget_split
from unlearnkit.data.splits import ValidationSplit, hold_out, validation_split
from unlearnkit.distributed import Ranks
from unlearnkit.distributed.collectives import barrier
from unlearnkit.evaluation.tuning import TrialTuner, Tuner, Tuning, Validation
from unlearnkit.experiments.config import Config, MethodConfig
from unlearnkit.experiments.experiment import chosen_method, make_unlearner
from unlearnkit.experiments.run import Job, exclusive, result_folder
from unlearnkit.models import CrossEntropy
from unlearnkit.models.parameters import digest
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.reporting import RunRecord
from unlearnkit.reporting.write import check_replaceable
from unlearnkit.unlearning import ElementwiseUnlearner, Report, Unlearner, UnlearningInputs
from unlearnkit.utils.errors import ConfigurationError, StoreError
from unlearnkit.utils.progress import Progress, silent

_REESTIMATE = {"both": (False, True), "yes": (True,), "no": (False,)}


@final
@attrs.frozen(kw_only=True, eq=False)
class Tuned:
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
    """Search for the right edit with one method, make it on a copy of the original model, and write both.

    Validation samples are split from the forget set and the retain set of the training data (the original was trained
    on them); importances are measured on the rest. The test set is used once, after the choice; only the target
    ``"unseen"`` takes a part of it away first. Without a candidate within the budget no model is written, and the
    record says so. With torch.distributed, the ranks share importances, candidates and evaluation, and rank 0 writes.
    ``overwrite`` and ``again`` are those of `run`.
    """
    plugins = plugins or default_manager()
    method = chosen_method(config, config.tuning.method, key="tuning.method")
    tunable(method, plugins)
    folder = result_folder(config, f"{method.label}-tuned")
    with exclusive(config.output):
        if os.path.lexists(folder) and not overwrite:
            raise StoreError(f"results already exist: {folder}: choose another output, or overwrite them")
        check_replaceable(folder)
        barrier()  # as in run()
        search = Search.start(*hold_out_unseen(Job.start(config, plugins, again=again, progress=progress)))
        job, model = search.job, copy.deepcopy(search.job.original)
        tuning, record = search.edit(model, method, label=folder.name)
        if tuning.chosen is None:
            record = attrs.evolve(record, manifest=job.experiment.manifest())
        else:
            record = job.with_plot_data(job.evaluated(record, model, job.evaluate(job.original)), model)
        job.write(folder, model if tuning.chosen else None, record)
        job.forget_checkpoints()
    return Tuned(tuning=tuning, record=record, folder=folder)


@final
@attrs.frozen(kw_only=True, eq=False)
class Search:
    """The validation split of one original model; importances are measured on the rest, once for all methods."""

    job: Job
    split: ValidationSplit
    unseen: LabelledImages | None

    @classmethod
    def start(cls, job: Job, unseen: LabelledImages | None = None) -> "Search":
        experiment, config = job.experiment, job.experiment.config.tuning
        if not isinstance(experiment.objective, CrossEntropy):
            raise ConfigurationError(
                f"objective: `tune` chooses by accuracy: expected a CrossEntropy, saw {experiment.objective.describe()}"
            )
        if config.target == "retrained" and not job.retrained:
            raise ConfigurationError(
                "tuning.target 'retrained': expected retrained models, saw none: name checkpoints in "
                "evaluation.retrained, or training seeds in evaluation.retrained_seeds"
            )
        targets, seed = experiment.bundle.train.targets, experiment.config.seed
        split = validation_split(experiment.forgotten, targets, fraction=config.validation_fraction, seed=seed)
        return cls(job=attrs.evolve(job, stage="tune"), split=split, unseen=unseen)

    def edit(self, model: nn.Module, method: MethodConfig, *, label: str) -> tuple[Tuning, RunRecord]:
        """Search, and edit the model with what was found, or not at all."""
        unlearner, found = tunable(method, self.job.plugins), list[Tuning]()

        def search(model: nn.Module, inputs: UnlearningInputs, *, accept: Callable[[Report], Report]) -> Report:
            if isinstance(unlearner, ElementwiseUnlearner):
                tuning = self._tune(model, unlearner, inputs)
            else:
                tuning = self._by_trials(model, unlearner, inputs, method)
            found.append(tuning)
            report = tuning.report or Report(method=unlearner.name, remarks=(tuning.sentence(),))
            # The edit is part of the search: each second is counted once.
            searching = tuning.seconds - sum(report.seconds.values())
            report = attrs.evolve(report, seconds={"tuning": searching, **report.seconds})
            return report if tuning.chosen is None else accept(report)

        split = self.split
        rows = {"full-train": split.full, "retain-train": split.retain, "forget-train": split.forget}
        report = self.job.edit(model, method, {name: self._part(part) for name, part in rows.items()}, edit=search)
        samples = {
            "forget importance": len(split.forget),
            "retain importance": len(split.retain),
            "forget validation": len(split.forget_validation),
            "retain validation": len(split.retain_validation),
            "unseen": 0 if self.unseen is None else len(self.unseen),
        }
        return found[0], self.job.record(label, report, tuning={**found[0].to_dict(), "samples": samples})

    def _tune(self, model: nn.Module, unlearner: ElementwiseUnlearner, inputs: UnlearningInputs) -> Tuning:
        experiment, config = self.job.experiment, self.job.experiment.config.tuning
        assert inputs.forget is not None, "every elementwise method needs it"
        target, source = self._target()
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
            forget=inputs.forget,
            reference=inputs.reference,
            validation=self._validation(),
            target=target,
            target_source=source,
            retain_data=experiment.evaluation_batches(self._part(self.split.retain)),
            objective=inputs.objective,
            seed=inputs.seed,
            max_fraction=inputs.max_fraction,
            together=True,
            progress=self.job.progress,
        )

    def _by_trials(
        self, model: nn.Module, unlearner: Unlearner, inputs: UnlearningInputs, method: MethodConfig
    ) -> Tuning:
        config, forgotten = self.job.experiment.config, self.job.experiment.forgotten
        if Ranks.current().size > 1:
            raise ConfigurationError(
                f"tuning.method {method.label!r}: expected one process, saw {Ranks.current().size}"
            )
        target, source = self._target()
        what = (
            digest(model),
            forgotten.digest(),
            method.name,
            dict(method.options),
            attrs.asdict(config.tuning),
            target,
        )
        tuner = TrialTuner(
            unlearner=unlearner,
            fixed=method.options,
            trials=config.tuning.trials,
            budget=config.tuning.budget,
            storage=f"sqlite:///{self._storage()}",
            study=hashlib.sha256(repr((*what, inputs.seed)).encode()).hexdigest()[:16],
        )
        return tuner.tune(
            model,
            inputs,
            validation=self._validation(),
            target=target,
            target_source=source,
            progress=self.job.progress,
        )

    def _storage(self) -> Path:
        """Return the file of the trials, with which a search that was stopped goes on."""
        folder = Path(self.job.experiment.config.output)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / ".trials.sqlite"

    def _validation(self) -> Validation:
        batches = self.job.experiment.shared_batches
        return Validation(
            retain=batches(self._part(self.split.retain_validation)),
            forget=batches(self._part(self.split.forget_validation)),
        )

    def _part(self, rows: np.ndarray) -> LabelledImages:
        return self.job.experiment.bundle.train.subset(rows)

    def _target(self) -> tuple[float, str]:
        config = self.job.experiment.config.tuning
        if config.target == "stated":
            return config.forget_accuracy, "stated"
        if self.unseen is not None:
            what = f"the original's on {len(self.unseen)} samples of the same kind that it was not trained on"
            return self._accuracy(self.job.original, self.unseen), what
        data = self._part(self.split.forget_validation)
        found = [self._accuracy(model, data) for model in self.job.retrained]
        return float(np.mean(found)), f"the mean of {len(found)} retrained models on the same samples"

    def _accuracy(self, model: nn.Module, data: LabelledImages) -> float:
        found = self.job.experiment.scores(model, {"forget": data})["forget"].accuracy
        assert found is not None, "Search.start() refuses an objective without classes"
        return found


def tunable(method: MethodConfig, plugins: PluginManager) -> Unlearner:
    """Make a method, or say why its options cannot be searched."""
    unlearner, where = make_unlearner(method, plugins), f"tuning.method {method.label!r}"
    if isinstance(unlearner, ElementwiseUnlearner):
        return unlearner
    TrialTuner(unlearner=unlearner, fixed=method.options).searched()
    if find_spec("optuna") is None:
        raise ConfigurationError(f"{where}: expected Optuna, which is not installed: pip install 'unlearnkit[tune]'")
    return unlearner


def hold_out_unseen(job: Job) -> tuple[Job, LabelledImages | None]:
    """For the target ``"unseen"``: take part of the test set out of it, so that it can set the target."""
    experiment, config = job.experiment, job.experiment.config
    if config.tuning.target != "unseen":
        return job, None
    test, spec = experiment.bundle.test, config.forget.spec()
    assert spec is not None, "a job has something to forget"
    fraction, seed = config.tuning.unseen_fraction, config.seed
    rest, aside = hold_out(np.arange(len(test)), test.targets.numpy(), fraction, seed)
    bundle = attrs.evolve(experiment.bundle, test=test.subset(rest))
    part = attrs.evolve(experiment.bundle, test=test.subset(aside))
    rows = forget_split(part, spec).test.forget
    if spec.carries_over and not len(rows):
        raise ConfigurationError("tuning.target 'unseen': the test set has no sample of what is forgotten")
    unseen = part.test.subset(rows) if spec.carries_over else part.test
    left = attrs.evolve(experiment, bundle=bundle, split=forget_split(bundle, spec))
    return attrs.evolve(job, experiment=left), unseen
