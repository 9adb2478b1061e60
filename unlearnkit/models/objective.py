"""How a batch becomes one loss per sample: the quantity whose gradients are squared."""

import abc
from collections.abc import Mapping
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, pick
from unlearnkit.utils.errors import ConfigurationError, MismatchError


class Objective(abc.ABC):
    """One loss per sample: negative log-likelihood in nats, for a Fisher in the proper sense.

    Subclass it for anything that is not classification; only `losses` must be written. It must be a pure function of
    the model and the batch, and sample i may depend on row i of the batch only.

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
        """Return the loss of every sample.

        Args:
            model: Called as it is; do not change its mode.
            batch: What the data loader yields, already on the model's device.

        Returns:
            Shape (batch,), a floating dtype, in nats.
        """

    @final
    def describe(self) -> str:
        """Name the objective and its options, as they stand in a fingerprint.

        Returns:
            For an attrs class its repr, else its qualified name.

        Example:
            >>> CrossEntropy().describe()
            "CrossEntropy(inputs=0, targets=-1, output='auto')"
        """
        return repr(self) if attrs.has(type(self)) else type(self).__qualname__


@final
@attrs.frozen(kw_only=True)
class CrossEntropy(Objective):
    """Negative log-likelihood of the labels in the batch: −log softmax(f(x))_y, in nats.

    Fields are found by position or by key, so ``(x, y)``, ``(x, fine, coarse)`` and ``{"image": …, "label": …}`` all
    work. Logits of shape (batch, classes, …) with targets (batch, …) are summed over the further positions; a target
    of −100 is left out.

    Attributes:
        inputs: Where the model's input stands in a batch.
        targets: Where the labels stand; by default the last field.
        output: Where the logits stand in what the model returns. ``"auto"`` takes a tensor as it is, or the field
            ``logits``.

    Example:
        >>> batch = (torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        >>> CrossEntropy().losses(nn.Identity(), batch)
        tensor([0.6931])
    """

    inputs: int | str = 0
    targets: int | str = -1
    output: int | str = "auto"

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return −log p(y | x) of every sample; see `Objective.losses`.

        Args:
            model: Called with the batch's input.
            batch: See `CrossEntropy`.

        Returns:
            Shape (batch,), nats.

        Raises:
            ConfigurationError: A label is out of range (known on the CPU only), or a field is not where it should be.
        """
        logits, targets = self.logits(model, batch), self.labels(batch)
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
        """Return the model's logits.

        Args:
            model: Called with the batch's input.
            batch: See `CrossEntropy`.

        Returns:
            Shape (batch, classes, …).
        """
        return logits_of(model(pick(batch, self.inputs, what="inputs")), output=self.output, model=model)

    def labels(self, batch: Any) -> Tensor:
        """Return the labels of the batch.

        Args:
            batch: See `CrossEntropy`.

        Returns:
            Shape (batch, …), an integer dtype (or class probabilities).
        """
        return _tensor(pick(batch, self.targets, what="targets"))


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
    """Check what an objective returned: one real number per sample.

    Example:
        >>> check_losses(torch.tensor(0.5), (torch.zeros(2, 3),), objective=CrossEntropy())
        Traceback (most recent call last):
        unlearnkit.utils.errors.MismatchError: CrossEntropy.losses must return one loss per sample, shape (2,), saw a \
tensor of shape () and torch.float32: do not average over the batch
    """
    size = batch_size(batch)
    if isinstance(losses, Tensor) and losses.shape == (size,) and losses.is_floating_point():
        return losses
    seen = (
        f"a tensor of shape {tuple(losses.shape)} and {losses.dtype}"
        if isinstance(losses, Tensor)
        else type(losses).__name__
    )
    raise MismatchError(
        f"{type(objective).__name__}.losses must return one loss per sample, shape ({size},), saw {seen}: "
        "do not average over the batch"
    )


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value)
