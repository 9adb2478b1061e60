"""Tensors that are spread over processes: the piece that lies here, the whole, and what all processes agree on.

Whatever is said here of all processes must be asked for by all of them, in the same order.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unlearnkit.utils.errors import UnsupportedModelError


def is_sharded(tensor: Tensor) -> bool:
    """Say whether a tensor is a `torch.distributed.tensor.DTensor`.

    Args:
        tensor: Any.

    Returns:
        False for an ordinary tensor.
    """
    module = sys.modules.get("torch.distributed.tensor")  # where nobody has imported it, there is none
    return module is not None and isinstance(tensor, module.DTensor)


def is_spread(model: nn.Module) -> bool:
    """Say whether a model is sharded over processes."""
    return any(is_sharded(p) for p in model.parameters())


def local(tensor: Tensor) -> Tensor:
    """Return the piece of a tensor that lies in this process, to look at or to edit in place.

    Args:
        tensor: Any.

    Returns:
        The piece, cut from the graph; the tensor itself, likewise, when it is not sharded.
    """
    plain = tensor.detach() if tensor.requires_grad else tensor  # a view costs more than all else here
    if not is_sharded(plain):
        return plain
    with torch.no_grad():
        piece: Tensor = _sharded(plain).to_local()
    return piece


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered from all processes; one tensor at a time, so that no process holds a model.

    Args:
        tensor: Any.

    Returns:
        An ordinary tensor.
    """
    plain = tensor.detach()
    if not is_sharded(plain):
        return plain
    found: Tensor = _sharded(plain).full_tensor()
    return found


def spread_like(piece: Tensor, pattern: Tensor) -> Tensor:
    """Return pieces as one sharded tensor."""
    if not is_sharded(pattern):
        return piece
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - it is there: the pattern is one

    like = _sharded(pattern)
    return DTensor.from_local(
        piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def layout(tensor: Tensor) -> str:
    """Say how a tensor is cut, for a comparison or a message."""
    if not is_sharded(tensor):
        return "whole"
    like = _sharded(tensor)
    return f"sharded as {tuple(like.placements)} over {tuple(like.device_mesh.shape)} processes"


def need_whole(tensors: Iterable[Tensor], *, who: str, instead: str) -> None:
    """Refuse sharded tensors where one process is to take them all."""
    if any(map(is_sharded, tensors)):
        raise UnsupportedModelError(
            f"{who}: expected tensors that are whole in this process, saw sharded ones (FSDP, DTensor): {instead}"
        )


def settle(model: nn.Module) -> bool:
    """Put every layer of an FSDP model back into pieces, and say whether the model is sharded.

    Args:
        model: Any.

    Returns:
        True when some parameter is a sharded tensor.

    Raises:
        UnsupportedModelError: It is sharded over some of the processes only.
    """
    for module in fsdp_modules(model).values():
        module.reshard()
    sharded = [(name, p) for name, p in model.named_parameters() if is_sharded(p)]
    for name, p in sharded:
        if _sharded(p).device_mesh.size() != dist.get_world_size():
            raise UnsupportedModelError(
                f"{name}: expected parameters sharded over all {dist.get_world_size()} processes, saw a mesh of "
                f"{_sharded(p).device_mesh.size()}: pipelines and other partial meshes are not supported"
            )
    return bool(sharded)


def fsdp_modules(model: nn.Module) -> dict[str, Any]:
    """Return the modules that ``torch.distributed.fsdp.fully_shard`` was applied to."""
    module = sys.modules.get("torch.distributed.fsdp")
    if module is None:
        return {}
    return {name: m for name, m in model.named_modules() if isinstance(m, module.FSDPModule)}


def counts_here(tensor: Tensor) -> bool:
    """Say whether this process is the one that speaks for its piece: several may hold copies of one."""
    if not is_sharded(tensor):
        return dist.get_rank() == 0
    like = _sharded(tensor)
    at = like.device_mesh.get_coordinate() or ()
    return all(place == 0 for place, placed in zip(at, like.placements, strict=True) if placed.is_replicate())


def added(numbers: Sequence[int], *, device: torch.device) -> list[int]:
    """Add numbers over all processes."""
    sums = torch.tensor(list(numbers), dtype=torch.int64, device=device)
    dist.all_reduce(sums)
    return [int(n) for n in sums.cpu()]


def widest(low: float, high: float, *, device: torch.device) -> tuple[float, float]:
    """Return the smallest and the largest over all processes: both NaN when one is."""
    bad = math.isnan(low) or math.isnan(high)
    mine = [math.inf if bad else -low, math.inf if bad else high, float(bad)]
    ends = torch.tensor(mine, dtype=torch.float64, device=device)
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    least, most, any_bad = (float(end) for end in ends.cpu())
    return (math.nan, math.nan) if any_bad else (-least, most)


def agreed(problems: Iterable[str]) -> list[str]:
    """Collect the problems of all processes, so that all raise when one would."""
    said = told(list(problems))
    everybody = [p for p in said[0] if all(p in others for others in said)]
    return everybody + [f"rank {rank}: {p}" for rank, mine in enumerate(said) for p in mine if p not in everybody]


def told(mine: Any) -> list[Any]:
    """Tell all processes something."""
    _, size = place()
    if size == 1:
        return [mine]
    found: list[Any] = [None] * size
    dist.all_gather_object(found, mine)
    return found


def place() -> tuple[int, int]:
    """Say which process this is, of how many."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _sharded(tensor: Tensor) -> Any:
    """The same object: torch's stubs do not know what `is_sharded` has found."""
    return tensor
