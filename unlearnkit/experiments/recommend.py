"""Recommend an edit: try the methods that can forget within a cost, judged without a retrained model."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, final

import attrs
from torch import nn

from unlearnkit.distributed import Ranks
from unlearnkit.evaluation.tuning import TrialTuner, Tuning
from unlearnkit.experiments.aims import Aims
from unlearnkit.experiments.config import Config, MethodConfig
from unlearnkit.experiments.experiment import make_unlearner
from unlearnkit.experiments.job import Job, exclusive, result_folder
from unlearnkit.experiments.search import check_accuracy, forget_trials, report_of, searched_on, trials_of
from unlearnkit.models.parameters import copy_of
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
        job = Job.start(config, plugins, again=again, progress=progress)
        check_accuracy(job.experiment, command="recommend")
        wanted = _methods_to_try(job)
        for method in wanted:  # a wrong name or option is an error before anything is trained
            make_unlearner(method, plugins)
        aims = Aims.measure(job.experiment, job.original, progress=progress)
        job = attrs.evolve(job, experiment=aims.experiment, stage="recommend")
        search = _MethodSearch(job=job, aims=aims)
        found = search.try_all(wanted)
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
            record = job.compared(record, chosen.model)
        job.write(folder, chosen.model if chosen.report is not None else None, record)
        job.forget_checkpoints()
        forget_trials(job)
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
    """Tunes each method within the limit, and sets the best edits side by side."""

    job: Job
    aims: Aims

    @property
    def steps(self) -> int:
        """The number of batches of an epoch over the retain set."""
        return self._batches("retain-train")

    def _batches(self, split: str) -> int:
        experiment = self.job.experiment
        return len(experiment.importance_batches(experiment.splits()[split]))

    def _limit(self, unlearner: Unlearner) -> int:
        """The epochs that are left after the importances."""
        return self.aims.limit - _measured(unlearner)

    def _epochs(self, unlearner: Unlearner) -> dict[str, int]:
        """Share the limit among what trains, by the prefix of its options; a pass may read the forget set, too."""
        parts = _training_parts(unlearner)
        share, found = self._limit(unlearner) // max(1, len(parts)), dict[str, int]()
        for prefix, part in parts.items():
            found[prefix] = share // part.batches_per_step
            reads = {Need.FORGET_DATA, Need.RETAIN_DATA} & part.requires()
            if part.batches_per_step == 1 and Need.FORGET_DATA in reads:
                forget = self._batches("forget-train")
                found[prefix] = share * self.steps // (forget + (self.steps if Need.RETAIN_DATA in reads else 0))
        return found

    def prepared(self, method: MethodConfig) -> Unlearner:
        """Make a method: options that name a signal get it, and training goes on as that of the original."""
        training, unlearner = self.job.experiment.config.training, make_unlearner(method, self.job.plugins)
        known = {o.name: o for o, _ in nested_options(unlearner) if o.name not in method.fixed}
        unknown = [o for o in known.values() if o.signal not in {"", "forget-loss"}]
        if unknown:
            raise ConfigurationError(
                f"{method.label}.{unknown[0].name}: expected the signal 'forget-loss', saw {unknown[0].signal!r}"
            )
        values: dict[str, Any] = {name: self.aims.target[o.signal] for name, o in known.items() if o.signal}
        for prefix, epochs in self._epochs(unlearner).items():
            values |= {
                f"{prefix}optimizer": "adam",
                f"{prefix}weight_decay": training.weight_decay,
                f"{prefix}schedule": training.schedule,
                f"{prefix}learning_rate": training.learning_rate,
                f"{prefix}epochs": max(1, epochs),  # where it is 0, the method is not tried
            }
        changed = with_options(unlearner, {name: value for name, value in values.items() if name in known})
        self.tuner(changed, method).searched()
        return changed

    def try_all(self, methods: Iterable[MethodConfig]) -> list[_Outcome]:
        """Try everything: leaving the model as it is, each method, and training from scratch."""
        prepared = [(method, self.prepared(method)) for method in methods]  # so that errors come before the first edit
        original = self.judged_outcome(self.job.original, Attempt(name=ORIGINAL))
        return [original, *(self.tried(method, unlearner) for method, unlearner in prepared), self.scratch()]

    def scratch(self) -> _Outcome:
        """Put the model from scratch in the place of the original."""
        model, limit = copy_of(self.job.original), self.aims.limit
        inputs = UnlearningInputs(model_factory=lambda: self.aims.trained)
        report = _FromScratch(epochs=limit).unlearn(model, inputs)
        attempt = Attempt(
            name=SCRATCH,
            options={"epochs": limit},
            trials=1,
            epochs=limit,
            search_epochs=limit,
            seconds=self.aims.seconds,
            search_seconds=self.aims.seconds,
        )
        return attrs.evolve(self.judged_outcome(model, attempt), report=report)

    def tried(self, method: MethodConfig, unlearner: Unlearner) -> _Outcome:
        """Tune one method, and keep its best edit."""
        if 0 in self._epochs(unlearner).values():
            why = f"needs more than the {self.aims.limit} epochs that an edit may take: raise recommend.cost"
            return _Outcome(attempt=Attempt(name=method.label, problem=why), model=self.job.original)
        model, found, start = copy_of(self.job.original), list[Tuning](), time.perf_counter()

        def search(model: nn.Module, inputs: UnlearningInputs, *, accept: Callable[[Report], Report]) -> Report:
            tuning = self.tune(model, inputs, method, unlearner)
            found.append(tuning)
            return report_of(tuning, unlearner, accept)

        report = self.job.edit(model, method, self.job.experiment.splits(), edit=search)
        tuning, seconds = found[0], time.perf_counter() - start
        measured = _measured(unlearner)  # shared by all trials
        audits = 1 + sum(not c.problem for c in tuning.candidates)  # of the original and of each edit
        trained = sum(c.steps for c in tuning.candidates) / self.steps
        attempt = Attempt(
            name=method.label,
            trials=len(tuning.candidates),
            search_epochs=measured + trained + audits * self.aims.audit_epochs,
            search_seconds=seconds,
        )
        best = tuning.chosen
        if best is None:
            attempt = attrs.evolve(attempt, problem=_why(tuning))
            return _Outcome(attempt=attempt, model=model, tuning=tuning)
        attempt = attrs.evolve(
            attempt,
            options=best.options,
            epochs=measured + best.steps / self.steps,
            # The best edit is made again.
            search_epochs=attempt.search_epochs + best.steps / self.steps + self.aims.audit_epochs,
            seconds=report.seconds.get("edit", 0.0),
        )
        outcome = self.judged_outcome(model, attempt)
        hidden = confined(report)  # what lies below is not forgotten
        attempt = attrs.evolve(outcome.attempt, problem=hidden, score=0.0) if hidden else outcome.attempt
        return attrs.evolve(outcome, attempt=attempt, report=report, tuning=tuning)

    def tuner(self, unlearner: Unlearner, method: MethodConfig) -> TrialTuner:
        """Make the search for the options that are not set; learning rates from that of the training to twice as much.

        An edit has fewer steps than the training, so it may need larger ones.
        """
        config, parts = self.job.experiment.config, _training_parts(unlearner)
        rate = config.training.learning_rate
        return TrialTuner(
            unlearner=unlearner,
            fixed=method.fixed | {f"{prefix}epochs" for prefix in parts},
            ranges={f"{prefix}learning_rate": (rate, 2 * rate) for prefix in parts},
            prune=False,  # an edit that undoes more begins worse
            trials=config.recommend.trials,
            budget=config.tuning.budget,
            most_steps=self._limit(unlearner) * self.steps,
        )

    def tune(self, model: nn.Module, inputs: UnlearningInputs, method: MethodConfig, unlearner: Unlearner) -> Tuning:
        config, tuner = self.job.experiment.config, self.tuner(unlearner, method)
        decides = {
            **searched_on(self.job, model),
            "method": [
                attrs.evolve(method, label=""),
                unlearner,
                sorted(tuner.fixed),
                tuner.ranges,
                self.aims.target,
                self.aims.tolerance,
            ],
            # Of the other methods nothing depends, nor do earlier trials on how many there will be.
            "options": [attrs.evolve(config.recommend, methods=(), trials=1), config.tuning, config.importance],
            "seed": config.seed,
        }
        study = hashlib.sha256(repr(decides).encode()).hexdigest()[:16]
        self.job.studies.append(study)
        return attrs.evolve(tuner, storage=trials_of(config), study=study).tune(
            model,
            inputs,
            validation=self.aims.validation(),
            target=self.aims.target["forget"],
            target_source=self.aims.source,
            gap=lambda edited: self.aims.gap(edited, self.aims.held(edited)),
            progress=self.job.progress,
        )

    def judged_outcome(self, model: nn.Module, attempt: Attempt) -> _Outcome:
        """Score a model as the candidates of a search are."""
        held = self.aims.held(model)
        found = self.aims.judge(model, held)
        attempt = attrs.evolve(
            attempt,
            forget=found.forget,
            retain=found.retain,
            swap=held["swap"],
            recovery=held.get("recovery"),
            score=found.score,
            problem="" if found.feasible else f"loses {found.damage:.3f} of retain accuracy",
        )
        return _Outcome(attempt=attempt, model=model)

    def recommendation(self, found: list[_Outcome], chosen: _Outcome) -> Recommendation:
        config, attempts = self.job.experiment.config, tuple(outcome.attempt for outcome in found)
        return Recommendation(
            attempts=attempts,
            chosen=None if chosen.report is None else found.index(chosen),
            target=self.aims.target,
            source=self.aims.source,
            budget=config.tuning.budget,
            limit=self.aims.limit,
            retraining=config.training.epochs,
            swap_error=self.aims.swap_error,
            measured=3 * self.aims.audit_epochs,  # of the target, the original and the model from scratch
        )


def _methods_to_try(job: Job) -> list[MethodConfig]:
    """List those of the configuration, else those that declare the scenario and those that are to be tuned."""
    config, scenario = job.experiment.config, job.experiment.forgotten.scenario
    declared = [p.name for p in job.plugins.provided("unlearner") if scenario in p.cls.traits.forgets]
    names = config.recommend.methods or (*declared, *(m.label for m in config.method if m.tuned))
    if not names:
        raise ConfigurationError(
            f"recommend: expected a method that declares the scenario {scenario!r} in its traits (forgets), saw none: "
            "name some in recommend.methods"
        )
    return [method_called(name, config, job.plugins) for name in dict.fromkeys(names)]


def method_called(name: str, config: Config, plugins: PluginManager) -> MethodConfig:
    """Find a method of ``recommend.methods``: one of the configuration by its label, else one at its defaults."""
    own = {method.label: method for method in config.method}
    known = [*own, *(p.name for p in plugins.provided("unlearner"))]
    if name not in known:
        raise ConfigurationError(f"recommend.methods: no method is called {name!r}{nearest(name, known)}")
    return own.get(name, MethodConfig(name=name))


def _training_parts(unlearner: Unlearner) -> dict[str, TrainingUnlearner]:
    """Return what trains, of a method and its steps, by the prefix of its options' names."""
    parts = {"": unlearner, **{f"{label}.": part for label, part in parts_of(unlearner).items()}}
    return {prefix: part for prefix, part in parts.items() if isinstance(part, TrainingUnlearner)}


def _measured(unlearner: Unlearner) -> int:
    """Return the epochs that its importances take: each one pass over its data, so one for those of both sets."""
    return int(bool(_IMPORTANCES & unlearner.requires()))


def _why(tuning: Tuning) -> str:
    made = [c for c in tuning.candidates if not c.problem]
    if not made:
        return tuning.candidates[-1].problem if tuning.candidates else "no edit was tried"
    if any(c.feasible for c in made):
        return "not better than leaving the model as it is"
    return f"loses at least {min(c.damage for c in made):.3f} of retain accuracy"
