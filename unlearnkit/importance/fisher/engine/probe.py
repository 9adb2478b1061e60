"""Looks at a few samples before the first batch: finds the steps of the forward pass, and checks the totals."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size
from unlearnkit.importance.fisher.engine.call_plan import Script, UnprovenError
from unlearnkit.importance.fisher.engine.discovery import Discovery
from unlearnkit.importance.fisher.engine.interceptor import Interceptor
from unlearnkit.importance.fisher.engine.random_projection import folded
from unlearnkit.models.objective import Objective, check_losses
from unlearnkit.models.parameters import buffers, device_of

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
    """What a probe found."""

    script: Script
    precision: torch.dtype
    samples: int


@final
class Comparison:
    """Compares the engine's totals of the probe with those of one sample at a time, holding neither.

    Of parameters that are not small only pictures are compared, in which 64 neighbours are one number; see `folded`.
    """

    def __init__(self, totals: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        self._rest: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._numels: dict[str, int] = {}
        for name, total in totals.items():
            self.expect(name, total)

    def expect(self, name: str, total: Tensor) -> None:
        """Take the engine's total of one parameter, or a part of it."""
        picture = folded(total)
        if name not in self._rest:
            self._rest[name], self._seen[name] = torch.zeros_like(picture), torch.zeros_like(picture)
            self._sums[name], self._numels[name] = total.new_zeros(()), total.numel()
        self._rest[name].add_(picture)

    def expects(self, name: str) -> bool:
        """Say whether a parameter's total was given."""
        return name in self._rest

    def receive(self, name: str, gradient: Tensor) -> None:
        """Take one sample's gradient of one parameter, with a leading 1."""
        g = gradient[0].to(self._rest[name].dtype)
        self._take(name, folded(g, square=True), torch.linalg.vector_norm(g).square())

    def receive_squares(self, name: str, squares: Tensor) -> None:
        """Take the squares of some samples' gradients of one parameter."""
        self._take(name, folded(squares), squares.sum())

    def _take(self, name: str, picture: Tensor, total: Tensor) -> None:
        self._rest[name].sub_(picture)
        self._seen[name].add_(picture)
        self._sums[name].add_(total)

    def verdict(
        self, precision: torch.dtype, *, together: Callable[[Tensor], Tensor] = lambda numbers: numbers
    ) -> None:
        """Say whether the two are the same."""
        relative, share = _TOLERANCES[precision]
        device = next((total.device for total in self._sums.values()), None)
        columns = torch.tensor([self._row(name) for name in self._rest], dtype=torch.float64, device=device)
        rows = dict(zip(self._rest, together(columns).tolist(), strict=True))
        means = [total / numel for total, numel, _, _ in rows.values() if numel]
        largest = max((mean for mean in means if math.isfinite(mean)), default=0.0)
        for name, (total, numel, size, difference) in rows.items():
            if not numel or not math.isfinite(total):
                continue
            floor = share * largest * numel * (size / total if total else 1.0)
            if not difference <= relative * size + floor:
                raise UnprovenError(
                    f"{name}: the totals of {difference / max(size, 1e-300):.2g} relative difference to those of "
                    "one sample at a time"
                )

    def _row(self, name: str) -> tuple[float, float, float, float]:
        """Return the sum of all squares, how many there are, the size of their picture, and what is left over."""
        size, left = (float(t[name].abs().sum()) for t in (self._seen, self._rest))
        return float(self._sums[name]), float(self._numels[name]), size, left


def check_alone(losses: Tensor, alone: Tensor, precision: torch.dtype) -> None:
    """Compare the losses of some samples within a whole batch with their losses alone."""
    relative, nats = _SAME_LOSS[precision]
    seen, expected = losses.detach()[: len(alone)].double(), alone.double()
    apart = (seen - expected).abs() > relative * expected.abs() + nats
    if bool(apart.any()):
        raise UnprovenError("the losses, which are others within a batch than alone")


def probe(model: nn.Module, objective: Objective, batch: Any, named: Mapping[str, Tensor]) -> Found:
    """Run one forward pass over a few samples, and one backward pass for each sample's loss alone."""
    guide = _watched(model, objective, batch, named)
    precision = _coarsest(guide.precisions | {p.dtype for p in named.values()})
    return Found(script=guide.script(), precision=precision, samples=batch_size(batch))


def probe_again(model: nn.Module, objective: Objective, batch: Any, named: Mapping[str, Tensor], found: Found) -> None:
    """Compare what a probe found with other samples."""
    _watched(model, objective, batch, named).compare(found.script)


def _watched(model: nn.Module, objective: Objective, batch: Any, named: Mapping[str, Tensor]) -> Discovery:
    frozen = [p for p in model.parameters() if not p.requires_grad]
    guide = Discovery(batch_size(batch), [*buffers(model).values(), *frozen])
    interceptor = Interceptor(named, guide, device_of(model))
    with interceptor:
        losses = objective.losses(model, batch)
    losses = check_losses(losses, batch, objective=objective)
    for sample in range(len(losses)):
        guide.sample = sample
        interceptor.backward(losses[sample], keep=True)
    return guide


def _coarsest(dtypes: set[torch.dtype]) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if dtype in dtypes:
            return dtype
    if dtypes != {torch.float64}:
        raise UnprovenError(f"expected parameters of a known floating dtype, saw {sorted(map(str, dtypes))}")
    return torch.float64
