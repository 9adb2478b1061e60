"""Slow, plain computations to compare an estimator with: one loop each, in float64.

They share nothing with the estimators but the workaround for wrong gradients of torch.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unlearnkit import Objective
from unlearnkit.data.batches import batch_size, map_tensors, take
from unlearnkit.models.norm_gradients import FixNormGradients


def per_sample_squares(model: nn.Module, batches: Iterable[Any], objective: Objective) -> dict[str, Tensor]:
    """Add up the squared gradient of every sample, one sample at a time.

    Σ_i (∂/∂θ loss_i)²: what `unlearnkit.DiagonalFisher` must give. The model is copied to float64 and eval mode.
    Returns the total of each trainable parameter by name, float64.
    """
    exact, totals = _exact(model)
    for batch in batches:
        wide = _wide(batch)
        for i in range(batch_size(wide)):
            with FixNormGradients():
                loss = objective.losses(exact, take(wide, slice(i, i + 1)))[0]
            for name, g in _gradients(exact, loss).items():
                totals[name] += g**2
    return totals


def batched_squares(model: nn.Module, batches: Iterable[Any], objective: Objective) -> dict[str, Tensor]:
    """Add up the squared gradient of every batch's mean loss: the loop of the notebook and of the SSD paper's code.

    Σ_b (∂/∂θ mean_{i∈b} loss_i)²: what `unlearnkit.BatchedDiagonalFisher` must give with ``weights="equal"``, otherwise
    as `per_sample_squares`.
    """
    exact, totals = _exact(model)
    for batch in batches:
        with FixNormGradients():
            loss = objective.losses(exact, _wide(batch)).mean()
        for name, g in _gradients(exact, loss).items():
            totals[name] += g**2
    return totals


def _exact(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    exact = copy.deepcopy(model).double().eval()
    totals = {name: torch.zeros_like(p).detach() for name, p in exact.named_parameters() if p.requires_grad}
    return exact, totals


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def _wide(batch: Any) -> Any:
    return map_tensors(batch, lambda t: t.double() if t.is_floating_point() else t)
