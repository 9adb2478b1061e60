"""Looks at a few samples before the first batch: finds the steps of the forward pass, and checks the totals."""

from collections.abc import Mapping
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

    def check(self, totals: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> None:
        """Compare the engine's totals of the probe with those of one sample at a time.

        Args:
            totals: Parameter name to total, by the engine.
            reference: The same, by differentiating each sample alone.

        Raises:
            UnprovenError: They differ by more than rounding.
        """
        relative, share = _TOLERANCES[self.precision]
        largest = max((float(t.mean()) for t in reference.values() if t.numel()), default=0.0)
        for name, expected in reference.items():
            seen = totals[name].to(expected.dtype)
            if not expected.numel() or not bool(torch.isfinite(expected).all()):
                continue
            difference, scale = float((seen - expected).abs().sum()), float(expected.sum())
            if not difference <= relative * scale + share * largest * expected.numel():
                raise UnprovenError(
                    f"{name}: the totals of {difference / max(scale, 1e-300):.2g} relative difference to those of one "
                    "sample at a time"
                )


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
        alone = torch.zeros_like(losses)
        alone[sample] = 1
        interceptor.backward(losses, alone, keep=True)
    return Found(script=guide.script(), precision=_coarsest(guide.precisions | {p.dtype for p in named.values()}))


def _coarsest(dtypes: set[torch.dtype]) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if dtype in dtypes:
            return dtype
    if dtypes != {torch.float64}:
        raise UnprovenError(f"expected parameters of a known floating dtype, saw {sorted(map(str, dtypes))}")
    return torch.float64
