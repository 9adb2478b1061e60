"""Tensors that are sharded over processes (DTensor, FSDP2): the local shard, the full tensor, and how it is sharded.

What concerns all processes must be called by all of them, in the same order.
"""

import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unlearnkit.utils.errors import UnsupportedModelError


def is_sharded(tensor: Tensor) -> bool:
    """Say whether a tensor is a `torch.distributed.tensor.DTensor`."""
    module = sys.modules.get("torch.distributed.tensor")  # without this import there is no DTensor
    return module is not None and isinstance(tensor, module.DTensor)


def is_sharded_model(model: nn.Module) -> bool:
    """Say whether a parameter of a model is sharded."""
    return any(is_sharded(p) for p in model.parameters())


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, detached and sharing its memory; an ordinary tensor detached."""
    plain = tensor.detach() if tensor.requires_grad else tensor  # a view costs more than all else here
    if not is_sharded(plain):
        return plain
    with torch.no_grad():
        shard: Tensor = _dtensor(plain).to_local()
    return shard


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor from all processes; an ordinary tensor is detached only."""
    plain = tensor.detach()
    if not is_sharded(plain):
        return plain
    found: Tensor = _dtensor(plain).full_tensor()
    return found


def shard_like(shard: Tensor, pattern: Tensor) -> Tensor:
    """Make each process's shard one tensor, sharded as the pattern is; for an ordinary pattern the shard itself."""
    if not is_sharded(pattern):
        return shard
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - it is there: the pattern is one

    like = _dtensor(pattern)
    return DTensor.from_local(
        shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def placement(tensor: Tensor) -> str:
    """Describe how a tensor is sharded, for a comparison or a message."""
    if not is_sharded(tensor):
        return "whole"
    like = _dtensor(tensor)
    return f"sharded as {tuple(like.placements)} over {tuple(like.device_mesh.shape)} processes"


def refuse_sharded(tensors: Iterable[Tensor], *, who: str, instead: str) -> None:
    """Raise an error where one process needs all of each tensor, and one is sharded."""
    if any(map(is_sharded, tensors)):
        raise UnsupportedModelError(
            f"{who}: expected tensors that are whole in this process, saw sharded ones (FSDP, DTensor): {instead}"
        )


def reshard(model: nn.Module) -> bool:
    """Reshard every FSDP module, check that the mesh has all processes, and say whether the model is sharded."""
    for module in fsdp_modules(model).values():
        module.reshard()
    sharded = [(name, p) for name, p in model.named_parameters() if is_sharded(p)]
    for name, p in sharded:
        if _dtensor(p).device_mesh.size() != dist.get_world_size():
            raise UnsupportedModelError(
                f"{name}: expected parameters sharded over all {dist.get_world_size()} processes, saw a mesh of "
                f"{_dtensor(p).device_mesh.size()}: pipelines and other partial meshes are not supported"
            )
    return bool(sharded)


def fsdp_modules(model: nn.Module) -> dict[str, Any]:
    """Return the modules that ``torch.distributed.fsdp.fully_shard`` was applied to."""
    module = sys.modules.get("torch.distributed.fsdp")
    if module is None:
        return {}
    return {name: m for name, m in model.named_modules() if isinstance(m, module.FSDPModule)}


def is_first_replica(tensor: Tensor) -> bool:
    """Say whether this process holds the first of the copies of its shard, so that each shard is counted once."""
    if not is_sharded(tensor):
        return dist.get_rank() == 0
    like = _dtensor(tensor)
    coordinates = like.device_mesh.get_coordinate() or ()
    return all(at == 0 for at, placed in zip(coordinates, like.placements, strict=True) if placed.is_replicate())


def _dtensor(tensor: Tensor) -> Any:
    """The same object: torch's stubs do not know what `is_sharded` has found."""
    return tensor
