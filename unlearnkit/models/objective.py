"""Objectives: one loss per sample, whose gradients are squared; and the loss and accuracy of a batch."""

import abc
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, pick, tensors
from unlearnkit.models.parameters import device_of
from unlearnkit.utils.errors import ConfigurationError, MismatchError
from unlearnkit.utils.options import unrecorded

_WRITE = "write an Objective of your own (docs/how-to/own-model-and-data.md)"
_OWN = f"for several labels, one logit or regression, {_WRITE}"

IGNORED = -100
"""The label that cross entropy leaves out, in torch and in Hugging Face's libraries."""


class Objective(abc.ABC):
    """One loss per sample: negative log-likelihood in nats, for a Fisher in the proper sense.

    Subclass it for anything that is not classification. `losses` must be a pure function of the model and the batch,
    and sample i may depend on row i of the batch only.

    Example:
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

    @final
    def describe(self) -> str:
        """Return the text for a fingerprint: the repr of an attrs class or dataclass, else the qualified name.

        Any other class with options is a `ConfigurationError`: its fingerprint would not tell them apart.
        """
        if attrs.has(type(self)) or dataclasses.is_dataclass(self):
            return repr(self)
        lost = ", ".join(unrecorded(type(self)))
        if lost:
            raise ConfigurationError(
                f"{type(self).__qualname__}: expected an attrs class, saw {lost}, which no fingerprint would hold: "
                "decorate the class with @attrs.frozen(kw_only=True)"
            )
        return type(self).__qualname__


@final
@attrs.frozen(kw_only=True)
class CrossEntropy(Objective):
    """Negative log-likelihood of the labels in the batch: −log softmax(f(x))_y, in nats.

    Logits of shape (batch, classes, …) with targets (batch, …) are summed over the further positions; a target of −100
    is left out. What cross entropy cannot mean is a `ConfigurationError`: a single logit, floating targets.

    Attributes:
        inputs: Position or key of the model's input in a batch, such as ``(x, y)`` or ``{"image": x, "label": y}``.
        targets: Position or key of the labels; by default the last one of two fields.
        output: Position or key of the logits in the model's output; ``"auto"`` takes a tensor, or its field ``logits``.
        probabilities: Take floating targets (batch, classes, …) for class probabilities.

    Example:
        >>> batch = (torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        >>> CrossEntropy().losses(nn.Identity(), batch)
        tensor([0.6931])
    """

    inputs: int | str = 0
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
        if not targets.is_floating_point():
            targets = targets.long()  # torch takes no other integers
        try:
            loss = nn.functional.cross_entropy(logits, targets, reduction="none")
        except IndexError as error:
            raise ConfigurationError(
                f"expected labels from 0 to {logits.shape[1] - 1}, one for each logit, saw another: {error} "
                "(check CrossEntropy(targets=...) and the last layer)"
            ) from error
        return loss.flatten(1).sum(1) if loss.dim() > 1 else loss

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the model's logits, shape (batch, classes, …)."""
        inputs = pick(batch, self.inputs, what="inputs")
        with _named_dtypes(model, inputs):
            return logits_of(model(inputs), output=self.output, model=model)

    def labels(self, batch: Any) -> Tensor:
        """Return the labels of the batch, shape (batch, …), an integer dtype (or class probabilities)."""
        if self.targets == -1 and isinstance(batch, tuple | list) and len(batch) != 2:
            raise ConfigurationError(
                f"expected a batch of two fields, inputs and labels, saw {len(batch)}: say which one holds the labels, "
                "for example CrossEntropy(targets=1)"
            )
        return _tensor(pick(batch, self.targets, what="targets"))

    def _check(self, logits: Tensor, targets: Tensor) -> None:
        seen = f"saw targets of {targets.dtype} and shape {tuple(targets.shape)} for logits {tuple(logits.shape)}"
        if logits.dim() < 2 or logits.shape[1] == 1:
            raise ConfigurationError(
                f"expected logits of at least two classes, shape (batch, classes, …), saw {tuple(logits.shape)}: {_OWN}"
            )
        if not targets.is_floating_point():
            expected = (logits.shape[0], *logits.shape[2:])
            if targets.shape != expected:
                advice = "squeeze them" if targets.numel() == math.prod(expected) else _OWN
                raise ConfigurationError(f"expected labels of shape {expected}, {seen}: {advice}")
        elif targets.shape == (logits.shape[0], *logits.shape[2:]):
            raise ConfigurationError(
                f"expected class labels, whole numbers, {seen}: convert them, y.long(), or {_WRITE}"
            )
        elif not self.probabilities or targets.shape != logits.shape:
            raise ConfigurationError(
                f"expected class labels, whole numbers, {seen}: for class probabilities of the logits' shape say "
                f"CrossEntropy(probabilities=True); {_OWN}"
            )


@final
@attrs.frozen(kw_only=True)
class CausalLanguageModel(Objective):
    """Negative log-likelihood of a sequence: Σ_t −log p(token_{t+1} | tokens ≤ t), in nats, padding left out.

    A text is one sample, however long: the Fisher information squares the gradient of its whole log-likelihood. The
    model is called like those of Hugging Face, with the tokens and ``attention_mask``.

    Attributes:
        tokens: Position or key of the token numbers in a batch: int64, shape (batch, length).
        mask: Likewise of the mask, 1 for tokens and 0 for padding, same shape; "" when there is no padding.
        labels: Likewise of labels that differ from the tokens (−100 is left out: a prompt, say); "" takes the tokens.
        pass_mask: Whether the model takes the mask as ``attention_mask``.
        output: As in `CrossEntropy`.

    Example:
        >>> model = nn.Embedding(3, 3)  # the next token depends on the last one alone
        >>> _ = nn.init.zeros_(model.weight)
        >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> batch = {"input_ids": torch.tensor([[0, 1, 2], [0, 1, 0]]), "attention_mask": mask}
        >>> CausalLanguageModel(pass_mask=False).losses(model, batch)  # two predictions, and one: ln 3 each
        tensor([2.1972, 1.0986], grad_fn=<SumBackward1>)
    """

    tokens: int | str = "input_ids"
    mask: int | str = "attention_mask"
    labels: int | str = ""
    pass_mask: bool = True
    output: int | str = "auto"

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of every sequence, 0 without a predicted token; see `Objective.losses`."""
        tokens = pick(batch, self.tokens, what="tokens")
        mask = pick(batch, self.mask, what="mask") if self.mask != "" else None
        logits = self._logits(model, tokens, mask)
        labels = tokens if self.labels == "" else pick(batch, self.labels, what="labels")
        if mask is not None:
            labels = labels.masked_fill(mask == 0, IGNORED)
        loss = nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORED
        )
        return loss.sum(1)

    def _logits(self, model: nn.Module, tokens: Tensor, mask: Tensor | None) -> Tensor:
        extra = {"attention_mask": mask} if mask is not None and self.pass_mask else {}
        logits = logits_of(model(tokens, **extra), output=self.output, model=model)
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise ConfigurationError(
                f"expected logits of shape (batch, length, vocabulary) for tokens {tuple(tokens.shape)}, saw "
                f"{tuple(logits.shape)}"
            )
        return logits


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

    Example:
        >>> Autocast().describe()
        "Autocast(objective=CrossEntropy(inputs=0, targets=-1, output='auto'))"
    """

    objective: Objective = attrs.field(factory=CrossEntropy, converter=check_objective)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the losses in float32; see `Objective.losses`."""
        with _autocast(model):
            return self.objective.losses(model, batch).float()

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
    else:
        losses = objective.losses(model, batch)
    checked = check_losses(losses, batch, objective=objective)
    loss_sum = float(checked.detach().to("cpu", torch.float64).sum())
    return checked, BatchScores(loss_sum=loss_sum, samples=len(checked), correct=correct, predictions=predictions)


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
