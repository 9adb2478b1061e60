"""Whether a model still holds what it forgot: after its weights are rounded, and after some training."""

from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import cycle, islice
from typing import Any, ClassVar, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim.lr_scheduler import LambdaLR

from unlearnkit.data.batches import batch_size
from unlearnkit.data.loaders import reshuffled
from unlearnkit.distributed import Shared
from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Measurement, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import (
    InapplicableError,
    ModelOutputs,
    Outputs,
    Values,
    answer,
    classification_of,
    loss_and_accuracy,
    mean,
    outputs_of,
    sampling_error,
)
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.parameters import copy_of
from unlearnkit.models.training import Loss, OptimizerConfig, batch_norm_layers, one_cycle, run_epoch, training_mode
from unlearnkit.utils.errors import ConfigurationError, UnsupportedModelError
from unlearnkit.utils.options import option
from unlearnkit.utils.progress import length

BITS = {"INT8": 8, "INT4": 4}


@final
@attrs.frozen(kw_only=True)
class Quantised(Metric):
    """Accuracy with weights s_c·round(w/s_c), s_c = max|w_c|/(2^(b−1) − 1): does rounding undo the forgetting?

    ``"INT8 SPLIT"`` and ``"INT4 SPLIT"`` on the forget set and on retained test data, and ``"float SPLIT"`` without
    rounding.
    """

    name: ClassVar[str] = "quantisation"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="Zhang et al. 2025 (Catastrophic Failure of LLM Unlearning via Quantization); Nagel et al. 2021",
        cost="two copies of each model, and a pass of each over two splits",
        trust="weights alone are rounded; where INT4 ruins retain accuracy, its forget accuracy says nothing",
    )

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)
        values: Values = {}

        def accuracy(split: str, name: str, model: nn.Module) -> float:
            known = outputs.of(model, split)  # first, so that a missing split is the reason
            if name == "float":
                return known.accuracy
            rounded = round_trip(model, bits=BITS[name])
            return outputs_of(rounded, inputs.splits[split], objective=inputs.objective).accuracy

        for split in ("forget-train", "retain-test"):
            for name in ("float", *BITS):
                values |= outputs.for_each_model(f"{name} {split}", partial(accuracy, split, name))
        return values


def quantised(weight: Tensor, *, bits: int, channel: int = 0) -> Tensor:
    """Round to s_c·round(w/s_c), s_c = max|w_c|/(2^(bits−1) − 1), for each slice c (Nagel et al. 2021, section 2.2)."""
    if not 2 <= bits <= 16:
        raise ConfigurationError(f"quantised: expected 2 to 16 bits, saw {bits!r}")
    w = weight.detach().double()
    largest = w.abs().amax(dim=[d for d in range(w.dim()) if d != channel], keepdim=True)
    scale = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    return ((w / scale).round() * scale).to(weight.dtype)


def round_trip(model: nn.Module, *, bits: int) -> nn.Module:
    """Copy a model with every weight of two or more dimensions rounded; biases, normalisation and buffers are kept."""
    rounded = copy_of(model)
    transposed = {id(m.weight) for m in rounded.modules() if isinstance(m, _ConvTransposeNd)}
    with torch.no_grad():
        for p in rounded.parameters():
            if p.dim() > 1 and p.is_floating_point() and p.numel():
                # A transposed convolution has its output channels in the second dimension.
                p.copy_(quantised(p, bits=bits, channel=1 if id(p) in transposed else 0))
    return rounded


@final
@attrs.frozen(kw_only=True)
class RelearnTime(Metric):
    """Steps on the forget set until the original's forget accuracy is near; (t_u − t_o)/(mean t_r − t_o) is relative.

    ``"relative"`` is 0 where the model knows as much as the original, 1 where it takes as long as a retrained one. A
    copy is trained. A model that does not get there has the largest number of steps, and a reason that says so.
    """

    name: ClassVar[str] = "relearn-time"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        unit="steps; fraction",
        source="Chundawat et al. 2023 (Zero-Shot Machine Unlearning), Anamnesis Index; Golatkar et al. 2020",
        cost="up to 100 steps of training for each model, and a pass over the forget set after each",
        trust="depends on step size and batch size; a destroyed model learns slowly too: check retain accuracy",
    )

    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size of Adam")
    most: int = option(100, at_least=1, doc="the largest number of steps")
    until: str = option("accuracy", choices=("accuracy", "loss"), doc="which value of the original is to be reached")
    margin: float = option(0.05, at_least=0, at_most=1, doc="how far from it: a share of the accuracy, or nats")

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)
        reached = cache(partial(self._steps, outputs, inputs))

        def steps(model: nn.Module) -> float:
            found = reached(model)
            return float(self.most if found is None else found)

        def relative() -> float:
            mine, retrained = steps(inputs.model), mean(map(steps, outputs.retrained()))
            if not retrained:
                raise InapplicableError("the retrained models need no steps either: there is nothing to learn again")
            return mine / retrained

        models: dict[str, tuple[nn.Module, ...]] = {
            f"{prefix}steps": (model,) for prefix, model in outputs.named.items()
        }
        models |= {"retrained steps": inputs.retrained, "relative": (inputs.model, *inputs.retrained)}
        found = {**outputs.for_each_model("steps", steps), "relative": answer(relative)}
        bound = f"a bound: the original's forget {self.until} was not reached in {self.most} steps"
        for name, value in found.items():
            if isinstance(value, float) and None in map(reached, models[name]):
                found[name] = Measurement(value=value, reason=bound)
        return found

    def _steps(self, outputs: ModelOutputs, inputs: EvaluationInputs, model: nn.Module) -> int | None:
        if self.until == "accuracy":
            outputs.of(model, "forget-train")  # first, so that a missing split is the reason
        batches, objective = outputs.batches("forget-train"), inputs.objective
        if inputs.original is None:
            raise InapplicableError("no original model at hand: its forget accuracy is the goal")
        _check_trainable(model)
        known = loss_and_accuracy(inputs.original, batches, objective=objective)
        goal: dict[str, Any] = {"loss": known.loss + self.margin}
        if self.until == "accuracy":
            assert known.accuracy is not None, "its outputs were computed: it is a classifier"
            goal = {"accuracy": known.accuracy * (1 - self.margin)}
        train = partial(steps_to_relearn, learning_rate=self.learning_rate, most=self.most, objective=objective)
        try:
            return train(model, batches, **goal)
        except UnsupportedModelError as error:
            raise InapplicableError(f"the model cannot be trained: {error}") from error


def _check_trainable(model: nn.Module) -> None:
    if not any(p.requires_grad for p in model.parameters()):
        raise InapplicableError("the model cannot be trained: all its weights are frozen")
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise InapplicableError("a float16 model cannot be trained by Adam: measure a copy in float32")


def mean_loss(objective: Objective) -> Loss:
    """Return the loss of a step of training: the mean over the batch."""
    return lambda model, batch: objective.losses(model, batch).mean()


def steps_to_relearn(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    accuracy: float | None = None,
    loss: float | None = None,
    learning_rate: float = 1e-3,
    most: int = 100,
    objective: Objective | None = None,
) -> int | None:
    """Steps of Adam, one per batch, until a copy in eval mode has this accuracy and loss; None after ``most`` steps."""
    criterion, student, kept = objective or CrossEntropy(), copy_of(model), list(batches)
    if not kept:
        raise ConfigurationError("expected at least one batch to relearn from, saw none")

    def reached() -> bool:
        found = loss_and_accuracy(student, kept, objective=criterion)
        accurate = accuracy is None or (found.accuracy is not None and found.accuracy >= accuracy)
        return accurate and (loss is None or found.loss <= loss)

    if reached():
        return 0
    adam = OptimizerConfig(learning_rate=learning_rate).optimizer_for(student)
    with training_mode(student, adam, seed=0, training=False):
        for number, batch in enumerate(islice(cycle(kept), most), start=1):
            run_epoch(student, [batch], mean_loss(criterion), adam, name="relearning")
            if reached():
                return number
    return None


@final
@attrs.frozen(kw_only=True)
class Recovery(Metric):
    """How much of the forgotten comes back by training on other data: an edit that only suppresses is undone by it.

    ``"retain epoch"`` is the accuracy on the forgotten samples after a copy was trained for one epoch on retained
    samples; ``"few samples"`` that on the other forgotten samples after some steps on the first batch of them. ``"…
    margin"`` is the mean of z_y − max_{c≠y} z_c of the logits z.
    """

    name: ClassVar[str] = "recovery"
    traits: ClassVar[MetricTraits] = MetricTraits(
        unit="fraction; logits",
        source="ours; after Golatkar et al. 2020",
        cost="one epoch over the retain set and some steps for each model, and two passes over the forget set",
        trust="says little of a whole class, whose accuracy any epoch without it lowers; the order of batches matters",
        holds=("retain epoch",),
    )

    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="largest step size of Adam, one-cycle")
    steps: int = option(10, at_least=1, doc="on the first batch of forgotten samples")
    seed: int = option(0, at_least=0, doc="of dropout")

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)

        def after(
            batches: Callable[[], Iterable[Any]], judged: Callable[[], Iterable[Any]], model: nn.Module
        ) -> Outputs:
            outputs.of(model, "forget-train")  # first, so that a missing split is the reason
            _check_trainable(model)
            student, data, unseen = copy_of(model), batches(), judged()
            adam = OptimizerConfig(learning_rate=self.learning_rate).optimizer_for(student)
            steps = length(data) or sum(1 for _ in data)
            falling = LambdaLR(adam, partial(one_cycle, steps=steps))  # else the order of the batches decides
            with training_mode(student, adam, seed=self.seed) as usable:
                loss = mean_loss(inputs.objective)
                run_epoch(student, usable(data), loss, adam, name=self.name, after_step=falling.step)
            return outputs_of(student, unseen, objective=inputs.objective)

        def retain() -> Iterable[Any]:
            batches, labels = outputs.batches("retain-train"), classification_of(inputs.objective).labels
            return reshuffled(batches.items if isinstance(batches, Shared) else batches, seed=self.seed, labels=labels)

        @cache  # a loader that shuffles would give other samples each time
        def forgotten() -> list[Any]:
            found = list(outputs.batches("forget-train"))
            if len(found) < 2:
                raise InapplicableError("the forget set is one batch: no forgotten samples are left to judge by")
            if batch_norm_layers(inputs.model) and batch_size(found[0]) < 2:
                raise InapplicableError("BatchNorm cannot be trained on a batch of one forgotten sample")
            return found

        whole = partial(outputs.batches, "forget-train")
        kinds = {
            "retain epoch": cache(partial(after, retain, whole)),
            "few samples": cache(partial(after, lambda: forgotten()[:1] * self.steps, lambda: forgotten()[1:])),
        }
        values: Values = {}
        for name, outcome in kinds.items():
            values |= outputs.for_every_model(
                name,
                lambda model, outcome=outcome: outcome(model).accuracy,  # type: ignore[misc]
                error=lambda p, outcome=outcome: sampling_error(p, len(outcome(inputs.model))),  # type: ignore[misc]
            )
            values |= outputs.for_each_model(
                f"{name} margin",
                lambda model, outcome=outcome: margin(outcome(model)),  # type: ignore[misc]
            )
        return values


def margin(outputs: Outputs) -> float:
    """Return the mean of z_y − max_{c≠y} z_c over some samples, z the logits and y the label."""
    rows, others = np.arange(len(outputs)), outputs.logits.copy()
    others[rows, outputs.labels] = -np.inf
    return mean(outputs.logits[rows, outputs.labels] - others.max(axis=1))
