"""Copy a model from rank 0 to every other rank."""

import torch
import torch.distributed as dist
from torch import nn

from unlearnkit.distributed.collectives import tell
from unlearnkit.models.parameters import buffers, parameters


def follow_rank_0(model: nn.Module, seen: str) -> tuple[int, ...]:
    """Give every rank the weights and buffers of rank 0, where they differ: not every edit on CUDA is repeatable."""
    told = tell(seen)
    others = tuple(rank for rank, one in enumerate(told) if one != told[0])
    if others:
        for tensor in {**parameters(model), **buffers(model)}.values():
            value = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(value, src=0)
            with torch.no_grad():
                tensor.copy_(value)
    return others
