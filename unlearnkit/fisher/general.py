"""Squared per-sample gradients of any model: `torch.func` in chunks, or one sample at a time where that cannot work."""

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from unlearnkit.batches import batch_size, map_tensors, take, tensors
from unlearnkit.errors import UnlearnKitError, UnlearnKitWarning, UnsupportedModelError
from unlearnkit.objective import Objective, check_losses
from unlearnkit.parameters import trainable, wide

_LARGEST_CHUNK = 16  # above it vmap over convolutions falls off a cliff on CPUs and gains nothing elsewhere
_ROUNDING = 0.3  # half precision; what is wrong in structure is wrong by a factor
_NOTHING = 1e-4  # of the largest square: below it lie rounding errors


@final
class SquaredGradients:
    """Σ_i (∂ loss_i / ∂θ)² over one batch, for any model whose samples do not mix.

    Args:
        model: In eval mode.
        objective: One loss per sample.
        chunk: Samples differentiated together, or 0 to choose by ``memory``.
        memory: Bound on the bytes of per-sample gradients held at one time.
        double: Square and add in float64 whatever the model's dtype.
        quiet: Do not warn when samples must be differentiated one at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        chunk: int = 0,
        memory: int = 512 << 20,
        quiet: bool = False,
        double: bool = False,
    ) -> None:
        refuse_batch_statistics(model)
        self._model: nn.Module = getattr(model, "_orig_mod", model)  # torch.func cannot look into compiled code
        self._objective = objective
        self._quiet = quiet
        self._double = double
        self._compared = False
        self._named = trainable(self._model)
        per_sample = sum(p.numel() * max(4, p.element_size()) for p in self._named.values())
        self._chunk = chunk or max(1, min(_LARGEST_CHUNK, memory // max(1, 2 * per_sample)))
        self._alone = self._chunk == 1

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Return the sum of squares over one batch.

        Args:
            batch: On the model's device.

        Returns:
            Parameter name to total, in at least float32.

        Raises:
            UnlearnKitError: What the objective or this class refuses.
        """
        if self._alone or batch_size(batch) == 1:
            return self.one_at_a_time(batch)
        try:
            totals = self.vectorised(batch)
            self._compare(batch)
        except UnlearnKitError:
            raise
        except (RuntimeError, ValueError, NotImplementedError) as error:
            # Which of torch's errors mean "vmap cannot" is not documented; a fault of the model fails again below.
            totals = self.one_at_a_time(batch)
            self._alone = True
            if not self._quiet:
                self._warn(error)
        return totals

    def _warn(self, error: Exception) -> None:
        warnings.warn(
            f"{type(self._model).__name__} cannot be differentiated many samples at a time ({_first_line(error)}): "
            "going on one sample at a time, exactly but several times slower",
            UnlearnKitWarning,
            stacklevel=3,
        )

    def _compare(self, batch: Any) -> None:
        """Compare with one sample at a time, once: some operations give other gradients under vmap, silently."""
        if self._compared:
            return
        few = take(batch, slice(0, 2))
        seen, expected = self.vectorised(few), self.one_at_a_time(few)
        for name, total in expected.items():
            difference = float((seen[name] - total).abs().sum())
            if not difference <= _ROUNDING * (float(total.sum()) + _NOTHING * total.numel() * self._largest(expected)):
                raise RuntimeError(f"torch.func gives other gradients for {name} than autograd")
        self._compared = True

    @staticmethod
    def _largest(totals: dict[str, Tensor]) -> float:
        return max(float(t.max()) for t in totals.values() if t.numel())

    def describe(self) -> str:
        """Say how the gradients are taken.

        Returns:
            A few words for a message.
        """
        return "one sample at a time" if self._alone else f"torch.func on {self._chunk} samples at a time"

    def vectorised(self, batch: Any) -> dict[str, Tensor]:
        """Differentiate a chunk of samples at a time.

        Args:
            batch: On the model's device.

        Returns:
            Parameter name to total.
        """
        losses = _Losses(self._model, self._objective)
        weights = {f"model.{name}": p.detach() for name, p in self._named.items()}

        def loss(weights: dict[str, Tensor], *sample: Tensor) -> Tensor:
            one = _rebuild(batch, [t.unsqueeze(0) for t in sample])
            value: Tensor = functional_call(losses, weights, (one,))
            return value.squeeze(0)

        columns = list(tensors(batch))
        gradients: Callable[..., dict[str, Tensor]] = vmap(
            grad(loss), in_dims=(None, *(0 for _ in columns)), randomness="different"
        )
        totals = self._zeros()
        with _QUIET:
            for start in range(0, batch_size(batch), self._chunk):
                for name, g in gradients(weights, *(t[start : start + self._chunk] for t in columns)).items():
                    total = totals[name.removeprefix("model.")]
                    total.add_(
                        g.to(total.dtype).square().sum(0)
                    )  # not in place: zeros of an unused weight are expanded
        return totals

    def one_at_a_time(self, batch: Any) -> dict[str, Tensor]:
        """Differentiate each sample alone.

        Args:
            batch: On the model's device.

        Returns:
            Parameter name to total.
        """
        totals = self._zeros()
        for i in range(batch_size(batch)):
            one = take(batch, slice(i, i + 1))
            loss = check_losses(self._objective.losses(self._model, one), one, objective=self._objective)
            found = torch.autograd.grad(loss.sum(), list(self._named.values()), allow_unused=True)
            for total, g in zip(totals.values(), found, strict=True):
                if g is not None:
                    total.add_(g.to(total.dtype).square())
        return totals

    def _zeros(self) -> dict[str, Tensor]:
        return {
            name: torch.zeros_like(p, dtype=torch.float64 if self._double else wide(p.dtype))
            for name, p in self._named.items()
        }


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse a model that mixes the samples of a batch: there is no per-sample gradient.

    Args:
        model: In eval mode.

    Raises:
        UnsupportedModelError: Naming each BatchNorm layer that keeps no running statistics or is in training mode.
    """
    kind = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - the only common parent of BatchNorm1d, 2d and 3d
    mixing = [
        name
        for name, module in model.named_modules()
        if isinstance(module, kind) and (module.running_mean is None or module.training)
    ]
    if mixing:
        raise UnsupportedModelError(
            f"expected samples that do not mix, saw BatchNorm on batch statistics in {', '.join(mixing)}: "
            "per-sample gradients do not exist there; use eval mode and track_running_stats=True, or GroupNorm"
        )


@final
class _Losses(nn.Module):
    """The objective as a module, so that `functional_call` can swap the weights of the model inside it."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective
        self.training = False

    def forward(self, batch: Any) -> Tensor:
        return check_losses(self._objective.losses(self.model, batch), batch, objective=self._objective)


@final
class _Quiet:
    """Switches off vmap's remarks on its speed while any thread is inside: this module says what there is to say."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            _remark(False)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            _remark(self._inside == 0)


def _remark(wanted: bool) -> None:
    torch._C._functorch._set_vmap_fallback_warning_enabled(wanted)  # type: ignore[attr-defined]  # noqa: SLF001 - torch's only switch


_QUIET = _Quiet()


def _rebuild(batch: Any, columns: list[Tensor]) -> Any:
    """Put other tensors into the places of a batch's tensors, in order."""
    rest: Iterator[Tensor] = iter(columns)
    return map_tensors(batch, lambda _: next(rest))


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:120] if text else type(error).__name__
