"""Recommend an edit: try the methods that can forget within a cost, judged without a retrained model."""

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, final

import attrs
import numpy as np
from torch import nn

from unlearnkit.data import LabelledImages
from unlearnkit.distributed import Ranks
from unlearnkit.evaluation import EvaluationInputs
from unlearnkit.evaluation.metrics import Recovery
from unlearnkit.evaluation.metrics.features import head_swap
from unlearnkit.evaluation.model_outputs import sampling_error, some_rows
from unlearnkit.evaluation.tuning import TrialTuner, Tuning, Validation
from unlearnkit.evaluation.tuning.tuner import judged, scores_of
from unlearnkit.experiments.config import Config, MethodConfig
from unlearnkit.experiments.experiment import Experiment, make_unlearner
from unlearnkit.experiments.job import Job, exclusive, result_folder
from unlearnkit.experiments.search import check_accuracy, divide_test_set, report_of, trials_of
from unlearnkit.experiments.train import retrained_for
from unlearnkit.models.parameters import digest
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.reporting import RunRecord
from unlearnkit.reporting.recommendation import ORIGINAL, SCRATCH, Attempt, Recommendation
from unlearnkit.reporting.verdict import confined
from unlearnkit.reporting.write import check_replaceable
from unlearnkit.unlearning import Need, Report, TrainingUnlearner, Unlearner, UnlearnerTraits, UnlearningInputs
from unlearnkit.unlearning.distillation import copy_state
from unlearnkit.utils.errors import ConfigurationError, StoreError, nearest
from unlearnkit.utils.options import nested_options, option, parts_of, with_options
from unlearnkit.utils.progress import Progress, silent

LABEL = "recommended"
"""The folder of the results, in that of the configuration."""

_AUDIT = ("head-swap", "recovery", "layer-probe")
_MOST = 5000  # samples that a head is fitted to
_PROXY = 6  # the proxy is trained for so many times fewer epochs than the original
_IMPORTANCES = frozenset({Need.FORGET_IMPORTANCE, Need.REFERENCE_IMPORTANCE})


@final
@attrs.frozen(kw_only=True, eq=False)
class Recommended:
    recommendation: Recommendation
    record: RunRecord
    folder: Path


def recommend(
    config: Config,
    *,
    plugins: PluginManager | None = None,
    overwrite: bool = False,
    again: bool = False,
    progress: Progress = silent,
) -> Recommended:
    """Try the methods that declare the scenario of a configuration, and write the best edit as `run` does.

    A part of the test set is held out to judge by, and the results are measured on the rest. What a model without the
    forget set would do is taken, for random samples, from the original on held-out samples; else from a model that is
    trained from scratch on the retain set for as many epochs as ``recommend.cost`` allows. Each method is tuned within
    that limit. The best edit of each stands beside this model and beside the original; where none is better than the
    original, no model is written. Retrained models that the configuration names are for the report alone. ``overwrite``
    and ``again`` are those of `run`; called again after it was stopped, it goes on with the trials that are there.
    """
    plugins = plugins or default_manager()
    metrics = tuple(dict.fromkeys([*config.evaluation.metrics, *_AUDIT]))
    config = attrs.evolve(config, evaluation=attrs.evolve(config.evaluation, metrics=metrics))
    folder = result_folder(config, LABEL)
    if Ranks.current().size > 1:
        raise ConfigurationError(f"recommend: expected one process, saw {Ranks.current().size}")
    if find_spec("optuna") is None:
        raise ConfigurationError("recommend: expected Optuna, which is not installed: pip install 'unlearnkit[tune]'")
    with exclusive(config.output):
        if os.path.lexists(folder) and not overwrite:
            raise StoreError(f"results already exist: {folder}: choose another output, or pass --overwrite")
        check_replaceable(folder)
        search = _MethodSearch.start(Job.start(config, plugins, again=again, progress=progress))
        job, found = search.job, search.try_all()
        usable = [outcome for outcome in found if not outcome.attempt.problem]
        chosen = max(usable, key=lambda outcome: outcome.attempt.score)  # among equals the first, which is the original
        recommendation = search.recommendation(found, chosen)
        fields: dict[str, Any] = {"recommendation": recommendation}
        if chosen.tuning is not None:
            fields["tuning"] = chosen.tuning.to_dict()
        if chosen.report is None:
            report = Report(method=LABEL, remarks=(recommendation.sentence(),))
            record = attrs.evolve(job.record(LABEL, report, **fields), manifest=job.experiment.manifest())
        else:
            record = job.evaluated(job.record(LABEL, chosen.report, **fields), chosen.model, job.evaluate(job.original))
            record = job.with_plot_data(record, chosen.model)
        job.write(folder, chosen.model if chosen.report is not None else None, record)
        job.forget_checkpoints()
    return Recommended(recommendation=recommendation, record=record, folder=folder)


@final
@attrs.frozen(kw_only=True)
class _FromScratch(Unlearner):
    """Put a model that was trained on the retain set alone in the place of the original."""

    name: ClassVar[str] = "from-scratch"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL_FACTORY})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(edits_buffers=True)

    epochs: int = option(1, at_least=1, doc="passes over the retain set, with the options of the training")

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        assert inputs.model_factory is not None, "MODEL_FACTORY is among the needs"
        copy_state(inputs.model_factory(), model)


@final
@attrs.frozen(kw_only=True, eq=False)
class _Outcome:
    """A row of the table with its model; the report is None where nothing was edited."""

    attempt: Attempt
    model: nn.Module
    report: Report | None = None
    tuning: Tuning | None = None


@final
@attrs.frozen(kw_only=True, eq=False)
class _MethodSearch:
    """Tries methods, judged by held-out samples and by a model that never saw the forget set."""

    job: Job
    retain: LabelledImages
    unseen: LabelledImages | None  # of the forgotten kind; None where the test set has none
    limit: int  # epochs that an edit may take
    trained: nn.Module  # from scratch, for as many epochs
    seconds: float  # that took
    proxy_epochs: int  # of the model whose forget loss is a target; 0 for random samples
    target: Mapping[str, float] = attrs.field(factory=dict)
    train_accuracy: float = 0.0  # of the original, on retained samples of the training set

    @classmethod
    def start(cls, job: Job) -> "_MethodSearch":
        check_accuracy(job.experiment, command="recommend")
        experiment, retain, unseen = _hold_out(job.experiment)
        job = attrs.evolve(job, experiment=experiment, stage="recommend")
        random, config = experiment.forgotten.scenario == "random", experiment.config
        epochs = 0 if random else max(1, round(config.training.epochs / _PROXY))
        limit = math.floor(config.recommend.cost * config.training.epochs)
        if limit <= epochs:
            raise ConfigurationError(
                f"recommend.cost: expected a share of {config.training.epochs} epochs that leaves one after "
                f"{epochs} of the proxy, saw {config.recommend.cost:g}: raise it"
            )
        start = time.perf_counter()
        trained = retrained_for(experiment, limit, progress=job.progress)
        seconds = time.perf_counter() - start
        search = cls(
            job=job,
            retain=retain,
            unseen=unseen,
            limit=limit,
            trained=trained,
            seconds=seconds,
            proxy_epochs=epochs,
        )
        search.methods()  # a wrong name is an error before the first edit
        if random:
            known = search.scores(job.original, retain)
            target = {"forget": known["accuracy"], "forget-loss": known["loss"]}
            target |= search.held(job.original, retain)
        else:
            # Trained for longer, it would be as accurate on retained samples as the original, and on others by as much
            # more than it is.
            proxy = retrained_for(experiment, epochs, progress=job.progress)
            original, reached = (search.scores(model, retain)["accuracy"] for model in (job.original, trained))
            more = max(1.0, original / max(reached, 1 / len(retain)))
            target = {
                "forget": min(1.0, more * search.scores(trained, search.forget)["accuracy"]),
                "forget-loss": search.scores(proxy, search.forget)["loss"],
                **{name: min(1.0, more * value) for name, value in search.held(trained).items()},
            }
        accuracy = search.accuracy_in_training(job.original)
        return attrs.evolve(search, target=target, train_accuracy=accuracy)

    @property
    def forget(self) -> LabelledImages:
        return self.job.experiment.splits()["forget-train"]

    @property
    def swap_error(self) -> float:
        """The sampling error of head-swap."""
        return sampling_error(self.target["swap"], len(self.unseen or self.forget))

    @property
    def tolerance(self) -> dict[str, float]:
        """How far what a model holds may be from the target at no cost: for classes, about one standard error."""
        errors = {"swap": self.swap_error}
        if "recovery" in self.target:
            errors["recovery"] = sampling_error(self.target["recovery"], len(self.forget))
        return {name: error / 2 if self.proxy_epochs else 0.0 for name, error in errors.items()}

    @property
    def audit_epochs(self) -> int:
        """The epochs that it takes to see what a model holds."""
        return int("recovery" in self.target)

    @property
    def source(self) -> str:
        if not self.proxy_epochs:
            return f"the original's on {len(self.retain)} samples that it was not trained on"
        return (
            f"those of a model trained on the retain set for {self.limit} epochs, corrected for its lower accuracy on "
            f"retained samples, and the loss of one trained for {self.proxy_epochs}"
        )

    def shared(self, unlearner: Unlearner, fixed: frozenset[str]) -> int:
        """The epochs that an edit takes before it begins: those of the proxy, where an option is measured on it."""
        signals = any(option.signal for option, _ in nested_options(unlearner) if option.name not in fixed)
        return self.proxy_epochs if signals else 0

    @property
    def steps(self) -> int:
        """The number of batches of an epoch over the retain set."""
        experiment = self.job.experiment
        return len(experiment.importance_batches(experiment.splits()["retain-train"]))

    def methods(self) -> list[tuple[MethodConfig, Unlearner]]:
        """List the methods to try, with their options where they are not searched."""
        experiment, plugins = self.job.experiment, self.job.plugins
        config, scenario = experiment.config, experiment.forgotten.scenario
        own = {method.label: method for method in config.method}
        declared = [p.name for p in plugins.provided("unlearner") if scenario in p.cls.traits.forgets]
        names = config.recommend.methods or (*declared, *(m.label for m in config.method if m.tuned))
        known = [*own, *(provided.name for provided in plugins.provided("unlearner"))]
        for name in names:
            if name not in known:
                raise ConfigurationError(f"recommend.methods: no method is called {name!r}{nearest(name, known)}")
        if not names:
            raise ConfigurationError(
                f"recommend: expected a method that declares the scenario {scenario!r} in its traits (forgets), saw "
                "none: name some in recommend.methods"
            )
        methods = [own.get(name, MethodConfig(name=name)) for name in dict.fromkeys(names)]
        return [(method, self.prepared(method)) for method in methods]

    def prepared(self, method: MethodConfig) -> Unlearner:
        """Make a method: options that name a signal get it, and training goes on as that of the original."""
        training, unlearner = self.job.experiment.config.training, make_unlearner(method, self.job.plugins)
        known = {o.name: o for o, _ in nested_options(unlearner) if o.name not in method.fixed}
        unknown = [o for o in known.values() if o.signal not in {"", "forget-loss"}]
        if unknown:
            raise ConfigurationError(
                f"{method.label}.{unknown[0].name}: expected the signal 'forget-loss', saw {unknown[0].signal!r}"
            )
        values: dict[str, Any] = {name: self.target[o.signal] for name, o in known.items() if o.signal and self.target}
        trained, limit = _training_parts(unlearner), self.limit - self.shared(unlearner, method.fixed)
        for prefix in trained:
            values |= {
                f"{prefix}optimizer": "adam",
                f"{prefix}weight_decay": training.weight_decay,
                f"{prefix}schedule": training.schedule,
                f"{prefix}learning_rate": training.learning_rate,
                f"{prefix}epochs": max(1, limit // len(trained)),
            }
        changed = with_options(unlearner, {name: value for name, value in values.items() if name in known})
        TrialTuner(unlearner=changed, fixed=self.fixed(changed, method)).searched()
        return changed

    def fixed(self, unlearner: Unlearner, method: MethodConfig) -> frozenset[str]:
        """Name the options that are not searched: those that are set, and epochs and learning rates of training.

        Where nothing else can be searched, learning rates are.
        """
        epochs, rates = ({f"{p}{name}" for p in _training_parts(unlearner)} for name in ("epochs", "learning_rate"))
        own = {o.name for o, _ in nested_options(unlearner) if o.search is not None} - epochs - rates - method.fixed
        return method.fixed | epochs | (rates if own else set())

    def try_all(self) -> list[_Outcome]:
        """Try everything: leaving the model as it is, each method, and training from scratch."""
        original = self.judged_outcome(self.job.original, Attempt(name=ORIGINAL))
        return [original, *(self.tried(method, unlearner) for method, unlearner in self.methods()), self.scratch()]

    def scratch(self) -> _Outcome:
        """Put the model from scratch in the place of the original."""
        model = copy.deepcopy(self.job.original)
        report = _FromScratch(epochs=self.limit).unlearn(model, UnlearningInputs(model_factory=lambda: self.trained))
        attempt = Attempt(
            name=SCRATCH,
            options={"epochs": self.limit},
            trials=1,
            epochs=self.limit,
            search_epochs=self.limit,
            seconds=self.seconds,
            search_seconds=self.seconds,
        )
        return attrs.evolve(self.judged_outcome(model, attempt), report=report)

    def tried(self, method: MethodConfig, unlearner: Unlearner) -> _Outcome:
        """Tune one method, and keep its best edit."""
        model, found, start = copy.deepcopy(self.job.original), list[Tuning](), time.perf_counter()

        def search(model: nn.Module, inputs: UnlearningInputs, *, accept: Callable[[Report], Report]) -> Report:
            tuning = self.tune(model, inputs, method, unlearner)
            found.append(tuning)
            return report_of(tuning, unlearner, accept)

        report = self.job.edit(model, method, self.job.experiment.splits(), edit=search)
        tuning, seconds = found[0], time.perf_counter() - start
        # An importance takes one pass over its data; those of both sets are shared by all trials.
        measured = 1.0 if _IMPORTANCES & unlearner.requires() else 0.0
        shared = self.shared(unlearner, method.fixed) + measured
        audits = 1 + sum(not c.problem for c in tuning.candidates)  # of the original and of each edit
        attempt = Attempt(
            name=method.label,
            trials=len(tuning.candidates),
            search_epochs=measured + sum(c.steps for c in tuning.candidates) / self.steps + audits * self.audit_epochs,
            search_seconds=seconds,
        )
        best = tuning.chosen
        if best is None:
            attempt = attrs.evolve(attempt, problem=_why(tuning))
            return _Outcome(attempt=attempt, model=model, tuning=tuning)
        attempt = attrs.evolve(
            attempt,
            options=best.options,
            epochs=shared + best.steps / self.steps,
            # The best edit is made again.
            search_epochs=attempt.search_epochs + best.steps / self.steps + self.audit_epochs,
            seconds=report.seconds.get("edit", 0.0),
        )
        outcome = self.judged_outcome(model, attempt)
        hidden = confined(report)  # what lies below is not forgotten
        attempt = attrs.evolve(outcome.attempt, problem=hidden, score=0.0) if hidden else outcome.attempt
        return attrs.evolve(outcome, attempt=attempt, report=report, tuning=tuning)

    def tune(self, model: nn.Module, inputs: UnlearningInputs, method: MethodConfig, unlearner: Unlearner) -> Tuning:
        config, fixed = self.job.experiment.config, self.fixed(unlearner, method)
        limit = self.limit - self.shared(unlearner, method.fixed)
        decides = {
            "model": digest(model),
            "forget": self.job.experiment.forgotten.digest(),
            "method": [unlearner, sorted(fixed), self.target, self.tolerance],
            "options": [config.recommend, config.tuning, config.importance],
            "seed": config.seed,
        }
        tuner = TrialTuner(
            unlearner=unlearner,
            fixed=fixed,
            prune=False,  # an edit that undoes more begins worse
            trials=config.recommend.trials,
            budget=config.tuning.budget,
            most_steps=limit * self.steps,
            storage=trials_of(config),
            study=hashlib.sha256(repr(decides).encode()).hexdigest()[:16],
        )
        return tuner.tune(
            model,
            inputs,
            validation=self.validation(),
            target=self.target["forget"],
            target_source=self.source,
            gap=lambda edited: self.gap(edited, self.held(edited)),
            progress=self.job.progress,
        )

    def validation(self) -> Validation:
        batches = self.job.experiment.evaluation_batches
        return Validation(retain=batches(self.retain), forget=batches(self.forget))

    def judged_outcome(self, model: nn.Module, attempt: Attempt) -> _Outcome:
        """Score a model as the candidates of a search are."""
        objective, config = self.job.experiment.objective, self.job.experiment.config
        original = scores_of(self.job.original, self.validation(), objective)
        seen, held = scores_of(model, self.validation(), objective), self.held(model)
        candidate = judged(
            seen,
            target=self.target["forget"],
            original=original,
            budget=config.tuning.budget,
            gap=self.gap(model, held),
            options=dict(attempt.options),
        )
        problem = "" if candidate.feasible else f"loses {candidate.damage:.3f} of retain accuracy"
        attempt = attrs.evolve(
            attempt,
            forget=candidate.forget,
            retain=candidate.retain,
            swap=held["swap"],
            recovery=held.get("recovery"),
            score=candidate.score,
            problem=problem,
        )
        return _Outcome(attempt=attempt, model=model)

    def gap(self, model: nn.Module, held: Mapping[str, float]) -> float:
        """Return how far a model is from the aims beside its accuracy on test samples, 0 … 1.

        What it holds from the target, beyond the tolerance, and its accuracy on samples it was trained on from that of
        the original.
        """
        far = [max(0.0, abs(value - self.target[name]) - self.tolerance[name]) for name, value in held.items()]
        lost = max(0.0, self.train_accuracy - self.accuracy_in_training(model))
        return 1 - math.prod(1 - distance for distance in (*far, lost))

    def held(self, model: nn.Module, on: LabelledImages | None = None) -> dict[str, float]:
        """Measure what a model holds of the forget set, or of other samples, below its outputs."""
        recovery = self.recovery(model, on)
        return {"swap": self.swap(model, on), **({} if recovery is None else {"recovery": recovery})}

    def scores(self, model: nn.Module, data: LabelledImages) -> dict[str, float]:
        """Return accuracy and loss."""
        found = self.job.experiment.scores(model, {"data": data})["data"]
        assert found.accuracy is not None, "the objective is a CrossEntropy"
        return {"accuracy": found.accuracy, "loss": found.loss}

    def some_of(self, rows: np.ndarray) -> LabelledImages:
        """Draw samples of the training set, the same each time."""
        experiment = self.job.experiment
        return experiment.bundle.train.subset(rows[some_rows(len(rows), _MOST, seed=experiment.config.seed)])

    def accuracy_in_training(self, model: nn.Module) -> float:
        """Return the accuracy on retained samples of the training set."""
        return self.scores(model, self.some_of(self.job.experiment.forgotten.retain))["accuracy"]

    def swap(self, model: nn.Module, on: LabelledImages | None = None) -> float:
        """Return the accuracy under a fresh head: on unseen samples of the forgotten kind, else on the forget set."""
        experiment = self.job.experiment
        batches, retained = experiment.evaluation_batches, experiment.forgotten.retain
        rows = retained if self.unseen is None else np.arange(len(experiment.bundle.train))
        return head_swap(
            model,
            judged=batches(on or self.unseen or self.forget),
            learnt=[batches(self.some_of(rows))],
            retain=batches(self.some_of(retained)),
            objective=experiment.objective,
            seed=experiment.config.seed,
            most=_MOST,
        )

    def recovery(self, model: nn.Module, on: LabelledImages | None = None) -> float | None:
        """Return the forget accuracy after an epoch on the retain set; None for whole classes, where it says little."""
        experiment = self.job.experiment
        if experiment.forgotten.scenario == "full-class":
            return None
        parts = {"retain-train": experiment.splits()["retain-train"], "forget-train": on or self.forget}
        splits = {name: experiment.importance_batches(data) for name, data in parts.items()}
        inputs = EvaluationInputs(model=model, splits=splits, objective=experiment.objective)
        return Recovery(seed=experiment.config.seed).evaluate(inputs)["retain epoch"]

    def recommendation(self, found: list[_Outcome], chosen: _Outcome) -> Recommendation:
        config, attempts = self.job.experiment.config, tuple(outcome.attempt for outcome in found)
        return Recommendation(
            attempts=attempts,
            chosen=None if chosen.report is None else found.index(chosen),
            target=self.target,
            source=self.source,
            budget=config.tuning.budget,
            limit=self.limit,
            retraining=config.training.epochs,
            swap_error=self.swap_error,
            # The audits of the target, of the original and of the model from scratch.
            measured=self.proxy_epochs + 3 * self.audit_epochs,
        )


def _hold_out(experiment: Experiment) -> tuple[Experiment, LabelledImages, LabelledImages | None]:
    """Take a part of the test set out of it: retained samples, and those of the forgotten kind, to judge by."""
    left, aside = divide_test_set(experiment)
    spec = experiment.config.forget.spec()
    assert spec is not None, "a job has something to forget"
    held = aside.splits()
    missing = [name for name in ("retain-test", "forget-test") if name not in held]
    if "retain-test" in missing or (spec.carries_over and missing):
        raise ConfigurationError(f"recommend: expected {missing[0]} samples to hold out, saw none in the test set")
    return left, held["retain-test"], held.get("forget-test")


def _training_parts(unlearner: Unlearner) -> dict[str, Unlearner]:
    """Return what trains, of a method and its steps, by the prefix of its options' names."""
    parts = {"": unlearner, **{f"{label}.": part for label, part in parts_of(unlearner).items()}}
    return {prefix: part for prefix, part in parts.items() if isinstance(part, TrainingUnlearner)}


def _why(tuning: Tuning) -> str:
    made = [c for c in tuning.candidates if not c.problem]
    if not made:
        return tuning.candidates[-1].problem if tuning.candidates else "no edit was tried"
    if any(c.feasible for c in made):
        return "not better than leaving the model as it is"
    return f"loses at least {min(c.damage for c in made):.3f} of retain accuracy"
