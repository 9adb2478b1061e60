"""Re-estimates the running statistics of BatchNorm on retain data after an edit."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlearnkit.data.batches import feed
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.parameters import device_of
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.rng import private_rng


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has BatchNorm layers that track running statistics."""
    return bool(_layers(model))


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any], *, objective: Objective | None = None) -> None:
    """Set the running statistics of each BatchNorm to the average over batches (Izmailov et al. 2018), in place."""
    layers, objective = _layers(model), objective or CrossEntropy()
    momenta = [layer.momentum for layer in layers]
    modes = {module: module.training for module in model.modules()}
    seen = False
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # what torch calls a cumulative average
        with torch.no_grad(), private_rng(device_of(model)):
            for _, moved in feed(batches, device_of(model)):
                seen = True
                objective.losses(model, moved)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if layers and not seen:
        raise ConfigurationError("expected at least one batch of retain data to re-estimate BatchNorm on, saw none")


def _layers(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
