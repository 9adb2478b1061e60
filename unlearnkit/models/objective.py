"""Objectives: one loss per sample, whose gradients are squared; and the loss and accuracy of a batch."""

import abc
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, pick, tensors
from unlearnkit.models.parameters import device_of, digest, digest_tensors, plain_attributes
from unlearnkit.models.tokens import refuse_left_padding
from unlearnkit.utils.errors import ConfigurationError, MismatchError, UnlearnKitWarning
from unlearnkit.utils.options import unrecorded

IGNORED = -100
"""The label that cross entropy leaves out, in torch and in Hugging Face's libraries."""
HALF = frozenset({torch.bfloat16, torch.float16})

_WRITE = "write an Objective of your own (docs/how-to/own-model-and-data.md)"
_ELSE = f"these are in unlearnkit.models; for anything else {_WRITE}"

NamedInputs = tuple[str | tuple[str, str], ...]
"""Keys of inputs that are passed by name; a pair is the name of an argument and the key of its value."""

Inputs = int | str | NamedInputs
"""Position or key of the model's input in a batch, or keys of several."""


def named_keys(inputs: Sequence[str | tuple[str, str]] | Mapping[str, str]) -> NamedInputs:
    """Return keys as a value that can be hashed: a mapping from arguments to keys becomes pairs."""
    if isinstance(inputs, str):
        raise ConfigurationError(f"expected several keys of inputs, saw {inputs!r}: write ({inputs!r},)")
    return tuple(inputs.items()) if isinstance(inputs, Mapping) else tuple(inputs)


def _key_or_keys(inputs: int | str | Sequence[str | tuple[str, str]] | Mapping[str, str]) -> Inputs:
    return inputs if isinstance(inputs, int | str) else named_keys(inputs)


class Objective(abc.ABC):
    """One loss per sample: negative log-likelihood in nats, for a Fisher in the proper sense.

    Subclass it for anything that is not classification. `losses` must be a pure function of the model and the batch,
    and sample i may depend on row i of the batch only.

    Examples:
        >>> class SquaredError(Objective):
        ...     def losses(self, model, batch):
        ...         x, y = batch
        ...         return 0.5 * (model(x) - y).square().flatten(1).sum(1)
        >>> SquaredError().losses(nn.Identity(), (torch.ones(2, 3), torch.zeros(2, 3)))
        tensor([1.5000, 1.5000])
    """

    @abc.abstractmethod
    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of every sample: shape (batch,), a floating dtype, in nats.

        The batch is what the data loader yields, already on the model's device; do not change the model's mode.
        """

    def predictions(self, batch: Any) -> Tensor:
        """Return how many predictions the loss of each sample adds up, shape (batch,): 1, or the number of tokens.

        Override it where a loss is a sum over tokens or pixels, for methods that divide by it.
        """
        return torch.ones(batch_size(batch), dtype=torch.long, device=next(tensors(batch)).device)

    def token_mask(self, batch: Any) -> Tensor | None:
        """Return 1 for tokens and 0 for padding, shape (batch, length); None, unless overridden: no padding."""
        del batch
        return None

    @final
    def describe(self) -> str:
        """Return the text for a fingerprint: the repr of an attrs class or dataclass, else the qualified name.

        Any other class with options is a `ConfigurationError`: its fingerprint would not tell them apart.
        """
        if attrs.has(type(self)) or dataclasses.is_dataclass(self):
            return " ".join([repr(self), *_digests({key: getattr(self, key) for key in _fields(self)})])
        lost = ", ".join(unrecorded(type(self)))
        if lost:
            raise ConfigurationError(
                f"{type(self).__qualname__}: expected an attrs class, saw {lost}, which no fingerprint would hold: "
                "decorate the class with @attrs.frozen(kw_only=True)"
            )
        return type(self).__qualname__


def _fields(objective: Objective) -> list[str]:
    kind: Any = type(objective)
    return [one.name for one in (attrs.fields(kind) if attrs.has(kind) else dataclasses.fields(kind))]


def _digests(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the repr of an option does not show: the values of tensors, and the attributes of modules."""
    for name, value in options.items():
        if isinstance(value, Tensor):
            yield f"{name}: {digest_tensors({name: value})}"
        elif isinstance(value, nn.Module):
            yield f"{name}: {plain_attributes(value)} {digest(value)}"


class Classification(Objective):
    """An objective whose model predicts one class of several: for a sample, or for each of its pixels or tokens.

    Methods that compare two models' class probabilities, or that change labels, need one.
    """

    @abc.abstractmethod
    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the model's logits, shape (batch, classes, …)."""

    @abc.abstractmethod
    def labels(self, batch: Any) -> Tensor:
        """Return the labels of the batch, shape (batch, …); −100 where nothing is predicted."""

    def predictions(self, batch: Any) -> Tensor:
        """Return the number of labels of each sample; see `Objective.predictions`."""
        labels = self.labels(batch)
        classes = labels.argmax(1) if labels.is_floating_point() else labels
        return (classes != IGNORED).reshape(len(labels), -1).sum(1)


@final
@attrs.frozen(kw_only=True)
class CrossEntropy(Classification):
    """Negative log-likelihood of the labels in the batch: −log softmax(f(x))_y, in nats.

    Logits of shape (batch, classes, …) with targets (batch, …) are summed over the further positions; a target of −100
    is left out. What cross entropy cannot mean is a `ConfigurationError` that names the objective that fits.

    Attributes:
        inputs: Position or key of the model's input in a batch, such as ``(x, y)`` or ``{"image": x, "label": y}``; a
            tuple of keys is passed by name, ``("input_ids", "attention_mask")`` to a model of Hugging Face, say, and a
            mapping from the names of arguments to keys too.
        targets: Position or key of the labels; by default the last one of two fields.
        output: Position or key of the logits in the model's output; ``"auto"`` takes a tensor, or its field ``logits``.
        probabilities: Take floating targets (batch, classes, …) for class probabilities.

    Examples:
        >>> batch = (torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        >>> CrossEntropy().losses(nn.Identity(), batch)
        tensor([0.6931])
    """

    inputs: Inputs = attrs.field(default=0, converter=_key_or_keys)
    targets: int | str = -1
    output: int | str = "auto"
    probabilities: bool = attrs.field(default=False, repr=False)  # a permission: no part of the fingerprint

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return −log p(y | x) of every sample; see `Objective.losses`."""
        return self.losses_of(self.logits(model, batch), batch)

    def losses_of(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the losses that the logits of a batch have."""
        targets = self.labels(batch)
        self._check(logits, targets)
        logits = upcast_half(logits)
        # torch takes no other integers, and probabilities in the dtype of the logits alone
        targets = targets.to(logits.dtype if targets.is_floating_point() else torch.int64)
        try:
            loss = nn.functional.cross_entropy(logits, targets, reduction="none")
        except IndexError as error:
            mask = "pixels of 255 that are to be left out: make them -100; " if bool((targets == 255).any()) else ""
            raise ConfigurationError(
                f"expected labels from 0 to {logits.shape[1] - 1}, one for each logit, saw another: {error} "
                f"({mask}check CrossEntropy(targets=...) and the last layer)"
            ) from error
        return loss.flatten(1).sum(1) if loss.dim() > 1 else loss

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the model's logits, shape (batch, classes, …)."""
        return _outputs(model, batch, inputs=self.inputs, output=self.output)

    def labels(self, batch: Any) -> Tensor:
        """Return the labels of the batch, shape (batch, …), an integer dtype (or class probabilities)."""
        return _targets(batch, self.targets, who="CrossEntropy")

    def _check(self, logits: Tensor, targets: Tensor) -> None:
        seen = f"saw targets of {targets.dtype} and shape {tuple(targets.shape)} for logits {tuple(logits.shape)}"
        if logits.dim() < 2 or logits.shape[1] == 1:
            raise ConfigurationError(
                f"expected logits of at least two classes, shape (batch, classes, …), saw {tuple(logits.shape)}: "
                f"{_fitting(targets)}"
            )
        if not targets.is_floating_point():
            expected = (logits.shape[0], *logits.shape[2:])
            if targets.shape != expected:
                several = f"for several labels of one sample {_WRITE}"
                advice = "squeeze them" if targets.numel() == math.prod(expected) else several
                advice = _fitting(targets) if targets.shape == logits.shape else advice
                raise ConfigurationError(f"expected labels of shape {expected}, {seen}: {advice}")
        elif targets.shape == (logits.shape[0], *logits.shape[2:]):
            raise ConfigurationError(
                f"expected class labels, whole numbers, {seen}: convert them, y.long(); {_fitting(targets)}"
            )
        elif not self.probabilities or targets.shape != logits.shape:
            raise ConfigurationError(f"expected class labels, whole numbers, {seen}: {_fitting(targets)}")


@final
@attrs.frozen(kw_only=True)
class BinaryCrossEntropy(Objective):
    """Negative log-likelihood of yes-or-no labels, several for each sample or one: −log σ(±f(x)), summed, in nats.

    Targets are 0 or 1, or probabilities, of the shape of the logits; dimensions of size 1 may differ. −100 is left out,
    and any other target is a `ConfigurationError`. The attributes are those of `CrossEntropy`.

    Examples:
        >>> batch = (torch.zeros(1, 3), torch.tensor([[1, 0, 1]]))
        >>> BinaryCrossEntropy().losses(nn.Identity(), batch)  # three times ln 2
        tensor([2.0794])
    """

    inputs: Inputs = attrs.field(default=0, converter=_key_or_keys)
    targets: int | str = -1
    output: int | str = "auto"

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the sum over the labels of every sample; see `Objective.losses`."""
        logits = upcast_half(_outputs(model, batch, inputs=self.inputs, output=self.output))
        targets = _like(logits, _targets(batch, self.targets, who="BinaryCrossEntropy"))
        kept = targets != IGNORED
        targets = targets.where(kept, 0.0)
        with suppress(RuntimeError):  # the tensors of torch.func have no values to look at
            if bool(((targets < 0) | (targets > 1)).any()):
                raise ConfigurationError(
                    f"BinaryCrossEntropy: expected targets from 0 to 1, and {IGNORED} for those to leave out, saw "
                    f"{float(targets.min()):g} … {float(targets.max()):g}"
                )
        loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none") * kept
        return loss.reshape(len(loss), -1).sum(1)


@final
@attrs.frozen(kw_only=True)
class SquaredError(Objective):
    """Negative log-likelihood of a Gaussian with σ = 1, without its constant: ½·|f(x) − y|², in nats.

    Targets have the shape of the outputs; dimensions of size 1 may differ. Divide both by the noise of your targets for
    another σ. The attributes are those of `CrossEntropy`.

    Examples:
        >>> batch = (torch.tensor([[3.0], [1.0]]), torch.tensor([1.0, 1.0]))
        >>> SquaredError().losses(nn.Identity(), batch)
        tensor([2., 0.])
    """

    inputs: Inputs = attrs.field(default=0, converter=_key_or_keys)
    targets: int | str = -1
    output: int | str = "auto"

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return half the sum of squares of every sample; see `Objective.losses`."""
        outputs = upcast_half(_outputs(model, batch, inputs=self.inputs, output=self.output))
        error = outputs - _like(outputs, _targets(batch, self.targets, who="SquaredError"))
        return 0.5 * error.square().reshape(len(error), -1).sum(1)


def upcast_half(outputs: Tensor) -> Tensor:
    """Cast half precision to float32: a sum of losses in half precision is rounded to whole nats and more."""
    return outputs.float() if outputs.dtype in HALF else outputs


def check_objective(objective: Any) -> Objective:
    """Return an objective; raise an error for anything else, such as a loss of torch."""
    if isinstance(objective, Objective):
        return objective
    advice = "pass an object, not its class" if isinstance(objective, type) else f"use CrossEntropy(), or {_WRITE}"
    if isinstance(objective, nn.Module):
        advice = "use CrossEntropy(), or write one whose losses() calls it with reduction='none'"
    raise ConfigurationError(f"expected an unlearnkit.Objective, saw {objective!r}: {advice}")


@final
@attrs.frozen(kw_only=True)
class Autocast(Objective):
    """Another objective with its forward pass under torch's autocast, in bfloat16.

    Gradients have the rounding of bfloat16 (about three digits); weights keep their dtype, and totals are added in
    float32 or more. The objective is part of an importance's fingerprint, so two precisions cannot be mixed.

    Examples:
        >>> Autocast().describe()
        "Autocast(objective=CrossEntropy(inputs=0, targets=-1, output='auto'))"
    """

    objective: Objective = attrs.field(factory=CrossEntropy, converter=check_objective)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the losses in float32; see `Objective.losses`."""
        with _autocast(model):
            return self.objective.losses(model, batch).float()

    def predictions(self, batch: Any) -> Tensor:
        """Return those of the other objective; see `Objective.predictions`."""
        return self.objective.predictions(batch)

    def token_mask(self, batch: Any) -> Tensor | None:
        """Return that of the other objective; see `Objective.token_mask`."""
        return self.objective.token_mask(batch)

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the logits in float32; see `CrossEntropy.logits`."""
        find = getattr(self.objective, "logits", None)
        if find is None:
            raise ConfigurationError(
                f"expected an objective with a method logits(model, batch), as CrossEntropy has, saw {self.describe()}"
            )
        with _autocast(model):
            found: Tensor = find(model, batch)
            return found.float()


def without_autocast(objective: Objective) -> Objective:
    """Return the objective under `Autocast`, or the objective itself."""
    while isinstance(objective, Autocast):
        objective = objective.objective
    return objective


def labels_of(objective: Objective) -> Callable[[Any], Tensor] | None:
    """Return what reads the labels of a batch, for `reshuffled`; None where there are no class labels."""
    plain = without_autocast(objective)
    return plain.labels if isinstance(plain, CrossEntropy) else None


def _outputs(model: nn.Module, batch: Any, *, inputs: Inputs, output: int | str) -> Tensor:
    """Run a model on the inputs of a batch."""
    if isinstance(inputs, tuple):
        named = named_inputs(batch, inputs)
        if {"input_ids", "attention_mask"} <= named.keys():  # with any positions, BERT would read its first padding
            refuse_left_padding(named["attention_mask"], who=type(model).__name__)
        with _named_dtypes(model, named):
            return logits_of(model(**named), output=output, model=model)
    found = pick(batch, inputs, what="inputs")
    with _named_dtypes(model, found):
        return logits_of(model(found), output=output, model=model)


def named_inputs(batch: Any, inputs: NamedInputs) -> dict[str, Any]:
    """Take the inputs that are passed by name out of a batch."""
    pairs = [(one, one) if isinstance(one, str) else one for one in inputs]
    return {name: pick(batch, key, what="inputs") for name, key in pairs}


def input_names(inputs: NamedInputs) -> list[str]:
    """Return the names of the arguments."""
    return [one if isinstance(one, str) else one[0] for one in inputs]


def _targets(batch: Any, where: int | str, *, who: str) -> Tensor:
    if where == -1 and isinstance(batch, tuple | list) and len(batch) != 2:
        raise ConfigurationError(
            f"expected a batch of two fields, inputs and labels, saw {len(batch)}: say which one holds the labels, "
            f"for example {who}(targets=1)"
        )
    return _tensor(pick(batch, where, what="targets"))


def _like(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the targets in the shape and dtype of the outputs; torch would broadcast (n,) against (n, 1)."""
    sizes = [[size for size in t.shape[1:] if size != 1] for t in (outputs, targets)]
    if sizes[0] != sizes[1] or outputs.shape[:1] != targets.shape[:1]:
        raise ConfigurationError(
            f"expected targets of the outputs' shape {tuple(outputs.shape)}, saw {tuple(targets.shape)}: check the "
            "last layer and the targets; one label of several classes is for CrossEntropy()"
        )
    return targets.reshape(outputs.shape).to(outputs.dtype)


def _fitting(targets: Tensor) -> str:
    """Name the objective for targets that are no class labels."""
    if bool(((targets == 0) | (targets == 1)).all()):
        found = "for labels that are 0 or 1 say objective=BinaryCrossEntropy()"
        more = ", for class probabilities of the logits' shape CrossEntropy(probabilities=True)"
        return f"{found}{more if targets.is_floating_point() else ''}; {_ELSE}"
    if targets.dim() > 1 and torch.allclose(targets.sum(1).float(), torch.ones(())):
        return f"for class probabilities of the logits' shape say CrossEntropy(probabilities=True); {_ELSE}"
    return f"for regression say objective=SquaredError(); {_ELSE}"


@contextmanager
def _named_dtypes(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Name inputs of another dtype than the weights, or of none, where the model fails."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(inputs, np.ndarray | list) and isinstance(error, TypeError | RuntimeError):
            raise MismatchError(f"expected inputs that are tensors, saw {type(inputs).__name__}: {error}") from error
        kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
        found = [t.dtype for t in tensors(inputs) if kinds and t.dtype not in kinds and "type" in str(error)]
        if not found and "'indices'" in str(error):
            numbers = [t.dtype for t in tensors(inputs)]
            raise MismatchError(
                f"expected whole numbers, as an embedding takes, saw {numbers[0]}: convert them in the data set, "
                f"x.long(): {error}"
            ) from error
        if not found:
            raise
        weights = " or ".join(sorted(map(str, kinds)))
        raise MismatchError(
            f"expected inputs of {weights}, as the weights of {type(model).__name__} are, saw {found[0]}: convert them "
            f"in the data set, x.to({weights.partition(' ')[0]}): {error}"
        ) from error


def logits_of(result: Any, *, output: int | str, model: nn.Module) -> Tensor:
    """Find the logits in what a model returned."""
    if output != "auto":
        return _tensor(pick(result, output, what="logits"))
    if isinstance(result, Tensor):
        return result
    found = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if found is None:
        keys = f" with the keys {sorted(map(str, result))}" if isinstance(result, Mapping) else ""
        raise ConfigurationError(
            f"expected the model {type(model).__name__} to return logits as a tensor or in a field 'logits', saw "
            f"{type(result).__name__}{keys}: name the field, for example CrossEntropy(output='out')"
        )
    return _tensor(found)


def check_losses(losses: Any, batch: Any, *, objective: Objective) -> Tensor:
    """Check what an objective returned: one real number per sample."""
    size = batch_size(batch)
    if isinstance(losses, Tensor) and losses.shape == (size,) and losses.is_floating_point():
        return losses
    seen = type(losses).__name__
    if isinstance(losses, Tensor):
        seen = f"a tensor of shape {tuple(losses.shape)} and {losses.dtype}"
    raise MismatchError(
        f"{type(objective).__name__}.losses must return one loss per sample, shape ({size},), saw {seen}: "
        "do not average over the batch"
    )


@final
@attrs.frozen(kw_only=True)
class BatchScores:
    """Sums over samples, so that scores of several batches can be added."""

    loss_sum: float
    samples: int
    correct: int | None
    predictions: int

    @property
    def loss(self) -> float:
        """Return the mean loss per sample, nats."""
        return self.loss_sum / self.samples

    @property
    def accuracy(self) -> float | None:
        """Return the share of right predictions, 0 … 1, or None when there are none to compare."""
        return None if self.correct is None or not self.predictions else self.correct / self.predictions


def total(scores: Iterable[BatchScores]) -> BatchScores:
    """Add up scores."""
    found = list(scores)
    known = [score.correct for score in found if score.correct is not None]
    return BatchScores(
        loss_sum=sum(score.loss_sum for score in found),
        samples=sum(score.samples for score in found),
        correct=sum(known) if len(known) == len(found) else None,
        predictions=sum(score.predictions for score in found),
    )


def score_batch(model: nn.Module, batch: Any, *, objective: Objective) -> tuple[Tensor, BatchScores]:
    """Run the model once on a batch; return its losses and its scores."""
    correct, predictions = None, 0
    if isinstance(objective, CrossEntropy):
        logits = objective.logits(model, batch)
        correct, predictions = _count(logits, objective.labels(batch))
        losses = objective.losses_of(logits, batch)
        if _like_probabilities(logits):
            warnings.warn(
                "CrossEntropy: expected logits, saw outputs from 0 to 1 that add up to 1, as after a softmax: "
                "losses and importances are wrong. Let the model return what goes into its softmax",
                UnlearnKitWarning,
                stacklevel=2,
            )
    else:
        losses = objective.losses(model, batch)
    checked = check_losses(losses, batch, objective=objective)
    loss_sum = float(checked.detach().to("cpu", torch.float64).sum())
    return checked, BatchScores(loss_sum=loss_sum, samples=len(checked), correct=correct, predictions=predictions)


def _like_probabilities(logits: Tensor) -> bool:
    values = logits.detach()
    if not bool((values >= 0).all()) or not bool(((values > 0) & (values < 1)).any()):  # one-hot rows may be logits
        return False
    rounding = 1e-2 if values.dtype in HALF else 1e-4
    return bool(((values.sum(1) - 1).abs() < rounding).all())


def _count(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    classes = labels.argmax(1) if labels.is_floating_point() else labels
    kept = classes != IGNORED
    right = (logits.detach().argmax(1) == classes) & kept
    return int(right.sum()), int(kept.sum())


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value)


def _autocast(model: nn.Module) -> torch.autocast:
    # No cache: with it, several calls of a layer would share one cast weight.
    return torch.autocast(device_of(model).type, torch.bfloat16, cache_enabled=False)


def float32_products(device: torch.device) -> str:
    """Describe torch's precision settings for float32 products on a device; "" for plain IEEE on a CPU."""
    backends: Any = torch.backends  # set at import time, unknown to type checkers
    cuda = device.type == "cuda"
    switches = (backends.cuda.matmul, backends.cudnn.conv) if cuda else (backends.mkldnn.matmul, backends.mkldnn.conv)
    names = [switch.fp32_precision.replace("none", "ieee") for switch in switches]
    if not cuda and set(names) == {"ieee"}:
        return ""
    return f"products {names[0]}, convolutions {names[1]}"
