"""Whether a model still holds what it forgot: after its weights are rounded, after some training, in its features."""

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cache, partial
from itertools import cycle, islice
from typing import Any, ClassVar, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import (
    InapplicableError,
    ModelOutputs,
    Values,
    answer,
    classification_of,
    loss_and_accuracy,
    map_rows,
    mean,
    outputs_of,
    some_rows,
)
from unlearnkit.evaluation.per_sample import Floats, Ints, floats
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.training import OptimizerConfig, run_epoch, training_mode
from unlearnkit.utils.errors import ConfigurationError, UnsupportedModelError, nearest
from unlearnkit.utils.options import option

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
    rounded = copy.deepcopy(model)
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
    copy is trained.
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
        steps = cache(partial(self._steps, outputs, inputs))

        def relative() -> float:
            mine, retrained = steps(inputs.model), mean(map(steps, outputs.retrained()))
            if not retrained:
                raise InapplicableError("the retrained models need no steps either: there is nothing to learn again")
            return mine / retrained

        return {**outputs.for_each_model("steps", steps), "relative": answer(relative)}

    def _steps(self, outputs: ModelOutputs, inputs: EvaluationInputs, model: nn.Module) -> float:
        outputs.of(model, "forget-train")  # first, so that a missing split is the reason
        if inputs.original is None:
            raise InapplicableError("no original model at hand: its forget accuracy is the goal")
        if not any(p.requires_grad for p in model.parameters()):
            raise InapplicableError("the model cannot be trained: all its weights are frozen")
        batches, objective = inputs.splits["forget-train"], inputs.objective
        known = loss_and_accuracy(inputs.original, batches, objective=objective)
        goal: dict[str, Any] = {"loss": known.loss + self.margin}
        if self.until == "accuracy":
            assert known.accuracy is not None, "its outputs were computed: it is a classifier"
            goal = {"accuracy": known.accuracy * (1 - self.margin)}
        train = partial(steps_to_relearn, learning_rate=self.learning_rate, most=self.most, objective=objective)
        try:
            found = train(model, batches, **goal)
        except UnsupportedModelError as error:
            raise InapplicableError(f"the model cannot be trained: {error}") from error
        if found is None:
            raise InapplicableError(f"the original's forget {self.until} was not reached in {self.most} steps")
        return float(found)


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
    criterion, student, kept = objective or CrossEntropy(), copy.deepcopy(model), list(batches)
    if not kept:
        raise ConfigurationError("expected at least one batch to relearn from, saw none")

    def reached() -> bool:
        found = loss_and_accuracy(student, kept, objective=criterion)
        accurate = accuracy is None or (found.accuracy is not None and found.accuracy >= accuracy)
        return accurate and (loss is None or found.loss <= loss)

    def mean_loss(student: nn.Module, batch: Any) -> Tensor:
        return criterion.losses(student, batch).mean()

    if reached():
        return 0
    adam = OptimizerConfig(learning_rate=learning_rate).optimizer_for(student)
    with training_mode(student, adam, seed=0, training=False):
        for number, batch in enumerate(islice(cycle(kept), most), start=1):
            run_epoch(student, [batch], mean_loss, adam, name="relearning")
            if reached():
                return number
    return None


@final
@attrs.frozen(kw_only=True)
class LinearProbe(Metric):
    """Accuracy of a logistic regression on penultimate features: is the forgotten class still there, behind the head?

    The probe learns the classes of the training data, forgotten and retained, from their features, and is judged on
    unseen samples. An edit of the last layer alone does not change it.
    """

    name: ClassVar[str] = "linear-probe"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="Alain and Bengio 2016",
        cost="one pass of each model over four splits, and one fit for each model",
        trust="features of other classes help with an unknown one: only the difference to a retrained model counts",
    )

    layer: str = option("", doc="layer whose input is probed; by default the Linear that is called last")
    seed: int = option(0, at_least=0, doc="of the solver and of the samples to learn from")
    most: int = option(5000, at_least=10, doc="samples to learn from at most")

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)

        def features(split: str, model: nn.Module) -> tuple[Floats, Ints]:
            return features_of(model, outputs.batches(split), layer=self.layer, objective=inputs.objective)

        @cache  # one fit for both splits
        def probe(model: nn.Module) -> Any:
            splits = [features(split, model) for split in ("forget-train", "retain-train")]
            values, labels = (np.concatenate(parts) for parts in zip(*splits, strict=True))
            rows = some_rows(len(labels), self.most, seed=self.seed)
            if len(np.unique(labels[rows])) < 2:
                raise InapplicableError("the training data have one class only: there is nothing to tell apart")
            return linear_probe(values[rows], labels[rows], seed=self.seed)

        def accuracy(split: str, model: nn.Module) -> float:
            judged = features(split, model)  # first, so that a missing split is the reason
            return float(probe(model).score(*judged))

        forget, retain = (outputs.for_each_model(s, partial(accuracy, s)) for s in ("forget-test", "retain-test"))
        return {**forget, **retain}


def features_of(
    model: nn.Module, batches: Iterable[Any], *, layer: str = "", objective: Objective | None = None
) -> tuple[Floats, Ints]:
    """Inputs (n, features) of a layer, by default of the `torch.nn.Linear` that is called last, and labels."""
    classification = classification_of(objective)
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            seen[:] = [inputs[0].detach()]

    def record(batch: Any) -> tuple[Tensor, Tensor]:
        seen.clear()
        y, size = classification.labels(batch), len(classification.logits(model, batch))
        if not seen or len(seen[-1]) != size or y.dim() != 1 or y.is_floating_point():
            raise InapplicableError(f"layer {layer or 'Linear'!r} has no row of features for each labelled sample")
        return seen[-1].flatten(1), y

    with ExitStack() as hooks:
        for module in _layers(model, layer):
            hooks.enter_context(module.register_forward_pre_hook(keep))
        values, labels = map_rows(model, batches, record)
    return floats(values, what="features", dimensions=2), labels


def linear_probe(features: Floats, labels: Ints, *, seed: int = 0) -> Any:
    """Fit scikit-learn's logistic regression to standardised features (Alain and Bengio 2016)."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - it takes seconds to import
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    if len(np.unique(labels)) < 2:
        raise ConfigurationError("linear_probe: expected at least two classes to learn, saw one")
    regression = LogisticRegression(max_iter=5000, random_state=seed)
    return make_pipeline(StandardScaler(), regression).fit(features, labels)


def _layers(model: nn.Module, layer: str) -> list[nn.Module]:
    known = {name: module for name, module in model.named_modules() if name or isinstance(module, nn.Linear)}
    if layer and layer not in known:
        raise InapplicableError(f"the model has no layer {layer!r}{nearest(layer, known)}")
    found = [known[layer]] if layer else [m for m in known.values() if isinstance(m, nn.Linear)]
    if not found:
        raise InapplicableError("the model has no Linear layer: name the layer whose input is to be probed")
    return found
