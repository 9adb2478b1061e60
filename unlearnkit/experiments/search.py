"""Edits from a configuration: with fixed options, or with those that a search finds on validation data."""

import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard, final
from urllib.parse import quote

import attrs
import numpy as np
from filelock import FileLock
from torch import nn

from unlearnkit.data import LabelledImages, forget_split
from unlearnkit.data.splits import ValidationSplit, hold_out, matching_rows, validation_split
from unlearnkit.distributed import Ranks
from unlearnkit.evaluation.tuning import TrialTuner, Tuner, Tuning, Validation
from unlearnkit.evaluation.tuning.trial_tuner import opened_storage
from unlearnkit.experiments.config import Config, MethodConfig, TuningConfig
from unlearnkit.experiments.experiment import Experiment, make_unlearner
from unlearnkit.experiments.job import Job
from unlearnkit.experiments.provenance import data_digest, digest_of, versions
from unlearnkit.models import CrossEntropy
from unlearnkit.models.parameters import digest
from unlearnkit.plugins.manager import PluginManager
from unlearnkit.reporting import RunRecord
from unlearnkit.unlearning import ElementwiseUnlearner, Report, Unlearner, UnlearningInputs
from unlearnkit.utils.errors import ConfigurationError, UnlearnKitWarning

_TRIALS = ".trials.sqlite"
_REESTIMATE = {"both": (False, True), "yes": (True,), "no": (False,)}


@final
@attrs.frozen(kw_only=True, eq=False)
class Editor:
    """Edits copies of the original model of one job by any method, tuned or not; searches share their importances."""

    job: Job
    unseen: LabelledImages | None = None
    _searches: "list[Search]" = attrs.field(factory=list, init=False)

    def prepare(self, methods: Iterable[MethodConfig]) -> None:
        """Check what a search needs, and measure what methods with fixed options need: a failure costs no edit."""
        methods = list(methods)
        if any(method.tuned for method in methods):
            self._search()
        fixed = (make_unlearner(method, self.job.plugins) for method in methods if not method.tuned)
        needs = {need for unlearner in fixed for need in unlearner.requires()}
        for need, source in self.job.importances(self.job.experiment.splits()).items():
            if need in needs:
                source()

    def edit(self, model: nn.Module, method: MethodConfig) -> tuple[RunRecord, Tuning | None]:
        """Edit a copy of the original model; the record is not evaluated yet."""
        if method.tuned:
            return self._search().edit(model, method)
        return self.job.record(method.label, self.job.edit(model, method, self.job.experiment.splits())), None

    def _search(self) -> "Search":
        if not self._searches:
            self._searches.append(Search.start(self.job, self.unseen))
        return self._searches[0]

    def forget_checkpoints(self) -> None:
        """Delete what is kept to go on after a stop, once the results are written."""
        for job in (self.job, *(search.job for search in self._searches)):
            job.forget_checkpoints()
        forget_trials(self.job)


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
        check_accuracy(experiment, command="tune")
        if config.target == "retrained" and not job.retrained:
            raise ConfigurationError(
                "tuning.target 'retrained': expected retrained models, saw none: name checkpoints in "
                "evaluation.retrained, or training seeds in evaluation.retrained_seeds"
            )
        if config.target == "stated" and config.forget_accuracy == 0 and experiment.forgotten.scenario == "random":
            warnings.warn(
                "tune aims at a forget accuracy of 0, but a model that was trained without random samples knows most "
                "of them all the same: set tuning.target = 'unseen', or tuning.forget_accuracy",
                UnlearnKitWarning,
                stacklevel=2,
            )
        targets, seed = experiment.bundle.train.targets, experiment.config.seed
        split = validation_split(experiment.forgotten, targets, fraction=config.validation_fraction, seed=seed)
        return cls(job=attrs.evolve(job, stage="tune"), split=split, unseen=unseen)

    def edit(self, model: nn.Module, method: MethodConfig) -> tuple[RunRecord, Tuning]:
        """Search, and edit the model with what was found, or not at all."""
        config = self.job.experiment.config
        unlearner, found = checked_unlearner(method, self.job.plugins, config.tuning), list[Tuning]()

        def search(model: nn.Module, inputs: UnlearningInputs, *, accept: Callable[[Report], Report]) -> Report:
            if _by_fractions(unlearner):
                tuning = self._by_fractions(model, unlearner, inputs, method)
            else:
                tuning = self._by_trials(model, unlearner, inputs, method)
            found.append(tuning)
            return report_of(tuning, unlearner, accept)

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
        return self.job.record(method.label, report, tuning={**found[0].to_dict(), "samples": samples}), found[0]

    def _by_fractions(
        self, model: nn.Module, unlearner: ElementwiseUnlearner, inputs: UnlearningInputs, method: MethodConfig
    ) -> Tuning:
        experiment = self.job.experiment
        assert inputs.forget is not None, "every elementwise method needs it"
        return _tuner(unlearner, method, experiment.config.tuning).tune(
            model,
            forget=inputs.forget,
            reference=inputs.reference,
            retain_data=experiment.evaluation_batches(self._part(self.split.retain)),
            objective=inputs.objective,
            seed=inputs.seed,
            max_fraction=inputs.max_fraction,
            together=True,
            **self._aim(),
        )

    def _by_trials(
        self, model: nn.Module, unlearner: Unlearner, inputs: UnlearningInputs, method: MethodConfig
    ) -> Tuning:
        config, aim = self.job.experiment.config, self._aim()
        if Ranks.current().size > 1:
            raise ConfigurationError(f"method {method.label!r}: expected one process, saw {Ranks.current().size}")
        what = {
            **searched_on(self.job, model),
            "method": attrs.asdict(attrs.evolve(method, label="")),
            "importance": attrs.asdict(attrs.evolve(config.importance, checkpoint="")),
            "tuning": attrs.asdict(attrs.evolve(config.tuning, method="", trials=1)),
            "target": aim["target"],
            "seed": inputs.seed,
        }
        tuner = TrialTuner(
            unlearner=unlearner,
            fixed=method.fixed,
            trials=config.tuning.trials,
            budget=config.tuning.budget,
            storage=trials_of(config),
            study=digest_of(what)[:16],
        )
        self.job.studies.append(tuner.study)
        return tuner.tune(model, inputs, **aim)

    def _aim(self) -> dict[str, Any]:
        """Return what both tuners are given alike."""
        target, source = self._target()
        return {
            "validation": self._validation(),
            "target": target,
            "target_source": source,
            "progress": self.job.progress,
        }

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


def checked_unlearner(method: MethodConfig, plugins: PluginManager, config: TuningConfig) -> Unlearner:
    """Make a method; where it is to be tuned, check that its options can be searched."""
    unlearner = make_unlearner(method, plugins)
    if not method.tuned:
        return unlearner
    if _by_fractions(unlearner):
        _tuner(unlearner, method, config)
        return unlearner
    TrialTuner(unlearner=unlearner, fixed=method.fixed).searched()
    if find_spec("optuna") is None:
        raise ConfigurationError(
            f"method {method.label!r}: its search needs Optuna, which is not installed: pip install 'unlearnkit[tune]'"
        )
    return unlearner


def _tuner(unlearner: ElementwiseUnlearner, method: MethodConfig, config: TuningConfig) -> Tuner:
    return Tuner(
        unlearner=unlearner,
        operating=config.operating,
        strength=config.strength or None,
        fixed=method.fixed,
        fractions=config.fractions,
        strengths=config.strengths,
        reestimate=_REESTIMATE[config.reestimate],
        budget=config.budget,
        rounds=config.rounds,
    )


def _by_fractions(unlearner: Unlearner) -> TypeGuard[ElementwiseUnlearner]:
    """Say whether `Tuner` can vary the share of weights that a method selects."""
    return isinstance(unlearner, ElementwiseUnlearner) and bool(unlearner.promises().monotone)


def check_accuracy(experiment: Experiment, *, command: str) -> None:
    """Refuse an objective without accuracy, by which a command chooses."""
    if not isinstance(experiment.objective, CrossEntropy):
        said = experiment.objective.describe()
        raise ConfigurationError(f"objective: `{command}` chooses by accuracy: expected a CrossEntropy, saw {said}")


def report_of(tuning: Tuning, unlearner: Unlearner, accept: Callable[[Report], Report]) -> Report:
    """Return the report of a search that ran as an edit, accepted where something was edited."""
    report = tuning.report or Report(method=unlearner.name, remarks=(tuning.sentence(),))
    # The edit is part of the search: each second is counted once.
    searching = tuning.seconds - sum(report.seconds.values())
    report = attrs.evolve(report, seconds={"tuning": searching, **report.seconds})
    return report if tuning.chosen is None else accept(report)


def searched_on(job: Job, model: nn.Module) -> dict[str, Any]:
    """Return what the trials of a search depend on besides its options, so that those of another one are not taken."""
    experiment = job.experiment
    data = [data_digest(part) for part in (experiment.bundle.train, experiment.bundle.test)]
    return {
        "model": digest(model),
        "data": data,
        "forget": experiment.forgotten.digest(),
        "objective": experiment.objective.describe(),
        "versions": versions(),
    }


def trials_of(config: Config) -> str:
    """Return the URL of the database of trials, with which a search that was stopped goes on; make it if needed."""
    file = Path(config.output) / _TRIALS
    file.parent.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{quote(str(file))}"
    with FileLock(f"{file}.lock"), opened_storage(url):  # two processes that make its tables at once fail
        return url


def forget_trials(job: Job) -> None:
    """Delete the trials of a job's searches, once its results are written; those of other commands stay."""
    if not job.studies:
        return
    import optuna  # noqa: PLC0415 - of the extra "tune"

    storage = trials_of(job.experiment.config)
    for study in dict.fromkeys(job.studies):  # two labels may name the same search
        optuna.delete_study(study_name=study, storage=storage)
    if not optuna.get_all_study_names(storage):
        file = Path(job.experiment.config.output) / _TRIALS
        file.unlink()
        Path(f"{file}.lock").unlink(missing_ok=True)


def divide_test_set(experiment: Experiment) -> tuple[Experiment, Experiment]:
    """Hold out a part of the test set: return one experiment with the rest of it, and one with that part."""
    bundle, config, spec = experiment.bundle, experiment.config, experiment.config.forget.spec()
    assert spec is not None, "a job has something to forget"
    rows, targets = np.arange(len(bundle.test)), bundle.test.targets.numpy()
    parts = hold_out(rows, targets, config.tuning.unseen_fraction, config.seed)
    bundles = [attrs.evolve(bundle, test=bundle.test.subset(part)) for part in parts]
    rest, aside = (attrs.evolve(experiment, bundle=one, split=forget_split(one, spec)) for one in bundles)
    return rest, aside


def hold_out_unseen(job: Job) -> tuple[Job, LabelledImages | None]:
    """For the target ``"unseen"``: take part of the test set out of it, so that it can set the target.

    Of single samples, these are of the classes of the forget set, each as often as there.
    """
    config = job.experiment.config
    if config.tuning.target != "unseen":
        return job, None
    if job.experiment.forgotten.scenario == "corrupted":
        raise ConfigurationError(
            "tuning.target 'unseen': corrupted samples have other labels than unseen ones: expected 'retrained', or "
            "'stated' with tuning.forget_accuracy"
        )
    left, aside = divide_test_set(job.experiment)
    spec = config.forget.spec()
    assert spec is not None, "a job has something to forget"
    unseen = aside.splits().get("forget-test") if spec.carries_over else like_forgotten(aside.bundle.test, left)
    if unseen is None:
        raise ConfigurationError("tuning.target 'unseen': the test set has no sample of what is forgotten")
    return attrs.evolve(job, experiment=left), unseen


def like_forgotten(data: LabelledImages, experiment: Experiment) -> LabelledImages | None:
    """Return the samples whose classes have the shares that they have in the forget set, if there are any."""
    forgotten = experiment.splits()["forget-train"].targets.numpy()
    rows = matching_rows(data.targets.numpy(), forgotten, seed=experiment.config.seed)
    return data.subset(rows) if len(rows) else None
