"""What `recommend` aims at: what a model without the forget set would do, measured without retraining to the end."""

import math
import time
from collections.abc import Mapping
from typing import Any, final

import attrs
import numpy as np
from torch import nn

from unlearnkit.data import LabelledImages
from unlearnkit.evaluation import EvaluationInputs
from unlearnkit.evaluation.metrics import Recovery
from unlearnkit.evaluation.metrics.features import head_swap
from unlearnkit.evaluation.model_outputs import sampling_error, some_rows
from unlearnkit.evaluation.tuning import Validation
from unlearnkit.evaluation.tuning.result import Candidate
from unlearnkit.evaluation.tuning.tuner import judged, scores_of
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.search import divide_test_set, like_forgotten
from unlearnkit.experiments.train import retrained_for
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.progress import Progress

_MOST = 5000  # samples that a head is fitted to


@final
@attrs.frozen(kw_only=True, eq=False)
class Aims:
    """Held-out samples, a model from scratch and the values to come near to; `judge` says how far a model is from them.

    Attributes:
        experiment: Without the samples that were held out.
        retain: Held-out samples of the retained kind.
        unseen: Held-out samples of the forgotten class or sub-class; None for others.
        alike: For single samples: held-out ones of the same classes, each as often as in the forget set; else None.
        limit: Epochs that an edit may take.
        trained: The model from scratch, trained on the retain set for as many epochs.
        seconds: How long that took.
        target: ``"forget"``, ``"forget-loss"``, ``"swap"`` and, but for whole classes, ``"recovery"``.
        train_accuracy: That of the original on retained samples of the training set.
    """

    experiment: Experiment
    original: nn.Module
    retain: LabelledImages
    unseen: LabelledImages | None
    alike: LabelledImages | None
    limit: int
    trained: nn.Module
    seconds: float
    target: Mapping[str, float] = attrs.field(factory=dict)
    train_accuracy: float = 0.0

    @classmethod
    def measure(cls, experiment: Experiment, original: nn.Module, *, progress: Progress) -> "Aims":
        """Hold samples out, train the model from scratch, and measure the targets."""
        experiment, retain, unseen = _hold_out(experiment)
        alike = _like_single_samples(retain, experiment)
        config = experiment.config
        limit = math.floor(config.recommend.cost * config.training.epochs)
        if limit < 1:
            raise ConfigurationError(
                f"recommend.cost: expected a share of {config.training.epochs} epochs that leaves one, saw "
                f"{config.recommend.cost:g}: raise it"
            )
        start = time.perf_counter()
        trained = retrained_for(experiment, limit, progress=progress)
        seconds = time.perf_counter() - start
        aims = cls(
            experiment=experiment,
            original=original,
            retain=retain,
            unseen=unseen,
            alike=alike,
            limit=limit,
            trained=trained,
            seconds=seconds,
        )
        if alike is not None:
            known = aims.scores(original, alike)
            target = {"forget": known["accuracy"], "forget-loss": known["loss"], **aims.held(original, alike)}
        else:
            # Trained for longer, it would be as accurate on retained samples as the original, and on the forget set by
            # as much more than it is. What its features hold hardly grows (measured: docs/how-to/which-method.md).
            full, reached = (aims.scores(model, retain)["accuracy"] for model in (original, trained))
            more = max(1.0, full / max(reached, 1 / len(retain)))
            known = aims.scores(trained, aims.forget)
            target = {"forget": min(1.0, more * known["accuracy"]), "forget-loss": known["loss"], **aims.held(trained)}
        return attrs.evolve(aims, target=target, train_accuracy=aims.accuracy_in_training(original))

    @property
    def forget(self) -> LabelledImages:
        return self.experiment.splits()["forget-train"]

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
        return {name: error / 2 if self.alike is None else 0.0 for name, error in errors.items()}

    @property
    def audit_epochs(self) -> int:
        """The epochs that it takes to see what a model holds."""
        return int("recovery" in self.target)

    @property
    def source(self) -> str:
        if self.alike is not None:
            return f"the original's on {len(self.alike)} samples of the same classes that it was not trained on"
        return (
            f"those of a model trained on the retain set for {self.limit} epochs, the forget accuracy raised as far as "
            "the original is more accurate on retained samples"
        )

    def validation(self) -> Validation:
        batches = self.experiment.evaluation_batches
        return Validation(retain=batches(self.retain), forget=batches(self.forget))

    def judge(self, model: nn.Module, held: Mapping[str, float]) -> Candidate:
        """Score a model as the candidates of a search are."""
        original, seen = (scores_of(m, self.validation(), self.experiment.objective) for m in (self.original, model))
        return judged(
            seen,
            target=self.target["forget"],
            original=original,
            budget=self.experiment.config.tuning.budget,
            gap=self.gap(model, held),
            options={},
        )

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
        found = self.experiment.scores(model, {"data": data})["data"]
        assert found.accuracy is not None, "the objective is a CrossEntropy"
        return {"accuracy": found.accuracy, "loss": found.loss}

    def some_of(self, rows: np.ndarray[Any, Any]) -> LabelledImages:
        """Draw samples of the training set, the same each time."""
        drawn = some_rows(len(rows), _MOST, seed=self.experiment.config.seed)
        return self.experiment.bundle.train.subset(rows[drawn])

    def accuracy_in_training(self, model: nn.Module) -> float:
        """Return the accuracy on retained samples of the training set."""
        return self.scores(model, self.some_of(self.experiment.forgotten.retain))["accuracy"]

    def swap(self, model: nn.Module, on: LabelledImages | None = None) -> float:
        """Return the accuracy under a fresh head: on unseen samples of the forgotten kind, else on the forget set."""
        experiment = self.experiment
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
        experiment = self.experiment
        if experiment.forgotten.scenario == "full-class":
            return None
        parts = {"retain-train": experiment.splits()["retain-train"], "forget-train": on or self.forget}
        splits = {name: experiment.importance_batches(data) for name, data in parts.items()}
        inputs = EvaluationInputs(model=model, splits=splits, objective=experiment.objective)
        return Recovery(seed=experiment.config.seed).evaluate(inputs)["retain epoch"]


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


def _like_single_samples(retain: LabelledImages, experiment: Experiment) -> LabelledImages | None:
    if experiment.forgotten.scenario != "random":
        return None
    alike = like_forgotten(retain, experiment)
    if alike is None:
        raise ConfigurationError(
            "recommend: expected samples of the forgotten classes to hold out, saw none in the test set"
        )
    return alike
