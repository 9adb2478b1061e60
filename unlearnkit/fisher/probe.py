"""Looks at a few samples before the first batch: finds the steps of the forward pass, and checks the totals."""

import math
from collections.abc import Callable, Mapping
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.batches import batch_size
from unlearnkit.fisher.discovery import Discovery
from unlearnkit.fisher.intercept import Interceptor
from unlearnkit.fisher.script import Script, UnprovenError
from unlearnkit.objective import Objective, check_losses
from unlearnkit.parameters import buffers, device_of

# How far totals of a few samples may be from those of one sample at a time, relative to their sum; what is wrong in
# structure is wrong by a factor, and what is rounding is far below. Second: gradients below this share of the largest
# are rounding errors themselves (the bias of attention's keys, a bias before a norm), squared.
_TOLERANCES = {
    torch.float64: (1e-6, 1e-22),
    torch.float32: (5e-3, 1e-9),
    torch.bfloat16: (0.3, 1e-4),
    torch.float16: (0.2, 1e-5),
}
# How far a sample's loss in a whole batch may be from its loss alone: relative, and in nats.
_SAME_LOSS = {
    torch.float64: (1e-6, 1e-9),
    torch.float32: (1e-2, 1e-4),
    torch.bfloat16: (0.3, 0.3),
    torch.float16: (0.3, 0.1),
}


@final
@attrs.frozen(kw_only=True, eq=False)
class Found:
    """What a probe found.

    Attributes:
        script: The steps of the forward pass.
        precision: The coarsest dtype among the layers' outputs.
    """

    script: Script
    precision: torch.dtype


@final
class Comparison:
    """Compares the engine's totals of the probe with those of one sample at a time, without holding both.

    Args:
        totals: Parameter name to total, by the engine; the squares of single samples are taken from it in place.
    """

    def __init__(self, totals: dict[str, Tensor]) -> None:
        self._rest = totals
        self._sums = {name: t.new_zeros(()) for name, t in totals.items()}

    def receive(self, name: str, gradient: Tensor) -> None:
        """Take one sample's gradient of one parameter, with a leading 1.

        Args:
            name: Of the parameter.
            gradient: By differentiating that sample alone.
        """
        rest = self._rest[name]
        g = gradient[0].to(rest.dtype)
        rest.addcmul_(g, g, value=-1)
        self._sums[name].add_(torch.dot(g.reshape(-1), g.reshape(-1)))

    def receive_squares(self, name: str, squares: Tensor) -> None:
        """Take the squares of some samples' gradients of one parameter.

        Args:
            name: Of the parameter.
            squares: Of its total's shape.
        """
        self._rest[name].sub_(squares)
        self._sums[name].add_(squares.sum())

    def verdict(
        self, precision: torch.dtype, *, together: Callable[[Tensor], Tensor] = lambda numbers: numbers
    ) -> None:
        """Say whether the two are the same.

        Args:
            precision: The coarsest dtype among the layers' outputs.
            together: Adds numbers over all processes, where each has compared pieces.

        Raises:
            UnprovenError: They differ by more than rounding.
        """
        relative, share = _TOLERANCES[precision]
        columns = [(float(self._sums[name]), float(t.abs().sum()), float(t.numel())) for name, t in self._rest.items()]
        rows = dict(zip(self._rest, together(torch.tensor(columns, dtype=torch.float64)).tolist(), strict=True))
        means = [total / numel for total, _, numel in rows.values() if numel]
        largest = max((mean for mean in means if math.isfinite(mean)), default=0.0)
        for name, (total, difference, numel) in rows.items():
            if not numel or not math.isfinite(total):
                continue
            if not difference <= relative * total + share * largest * numel:
                raise UnprovenError(
                    f"{name}: the totals of {difference / max(total, 1e-300):.2g} relative difference to those of "
                    "one sample at a time"
                )


def check_alone(losses: Tensor, alone: Tensor, precision: torch.dtype) -> None:
    """Compare the losses of some samples within a whole batch with their losses alone.

    Args:
        losses: Of the batch; its first samples are those of ``alone``.
        alone: Of the probe's samples, each by itself.
        precision: The coarsest dtype among the layers' outputs.

    Raises:
        UnprovenError: A sample's loss depends on its neighbours.
    """
    relative, nats = _SAME_LOSS[precision]
    seen, expected = losses.detach()[: len(alone)].double(), alone.double()
    apart = (seen - expected).abs() > relative * expected.abs() + nats
    if bool(apart.any()):
        raise UnprovenError("the losses, which are others within a batch than alone")


def probe(model: nn.Module, objective: Objective, batch: Any, named: Mapping[str, Tensor]) -> Found:
    """Run one forward pass over a few samples, and one backward pass for each sample's loss alone.

    Args:
        model: In eval mode.
        objective: One loss per sample.
        batch: At least two samples.
        named: The trainable parameters.

    Returns:
        The steps of the forward pass with the layout of each layer.

    Raises:
        UnprovenError: Some layer's rows cannot be told apart by sample.
    """
    guide = Discovery(batch_size(batch), buffers(model).values())
    interceptor = Interceptor(named, guide, device_of(model))
    with interceptor:
        losses = objective.losses(model, batch)
    losses = check_losses(losses, batch, objective=objective)
    for sample in range(len(losses)):
        guide.sample = sample
        interceptor.backward(losses[sample], keep=True)
    return Found(script=guide.script(), precision=_coarsest(guide.precisions | {p.dtype for p in named.values()}))


def _coarsest(dtypes: set[torch.dtype]) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if dtype in dtypes:
            return dtype
    if dtypes != {torch.float64}:
        raise UnprovenError(f"expected parameters of a known floating dtype, saw {sorted(map(str, dtypes))}")
    return torch.float64
