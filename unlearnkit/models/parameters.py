"""A model's parameters and buffers by name: digests, extremes and checks of them."""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from blake3 import blake3
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unlearnkit.distributed.collectives import all_gather, all_reduce_min_max
from unlearnkit.distributed.sharded_tensors import full_tensor, is_sharded, local
from unlearnkit.utils.errors import ConfigurationError, NonFiniteError, UnsupportedModelError

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_COMPILED_PREFIX = "_orig_mod."  # what torch.compile puts before the names of the module it wraps


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter once, by its qualified name; tied weights are one parameter under their first name.

    Example:
        >>> list(parameters(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
        ['0.weight', '0.bias']
    """
    return {name.replace(_COMPILED_PREFIX, ""): p for name, p in model.named_parameters()}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with ``requires_grad`` by name, in the model's order; an error when there is none."""
    found = {name: p for name, p in parameters(model).items() if p.requires_grad}
    if not found:
        raise ConfigurationError(
            f"expected a model with at least one trainable parameter, saw {type(model).__name__} with none: "
            "call requires_grad_(True) on the weights that may be edited"
        )
    return found


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return every buffer once, by its qualified name."""
    return {name.replace(_COMPILED_PREFIX, ""): b for name, b in model.named_buffers()}


def dense(gradient: Tensor | None) -> Tensor | None:
    """Return a dense gradient: embeddings with ``sparse=True`` get sparse ones.

    Example:
        >>> dense(torch.eye(2)[1].to_sparse())
        tensor([0., 1.])
    """
    return gradient.to_dense() if gradient is not None and gradient.layout is not torch.strided else gradient


def device_of(model: nn.Module) -> torch.device:
    """Return the device of all parameters, the CPU for a model without any; an error when there are several."""
    devices = {p.device for p in model.parameters()}
    if len(devices) > 1:
        raise ConfigurationError(
            f"expected all parameters on one device, saw {sorted(map(str, devices))}: move the model with .to(device)"
        )
    return devices.pop() if devices else torch.device("cpu")


def digest(model: nn.Module) -> str:
    """Hash all parameters and buffers: names, dtypes, shapes and bits.

    It does not depend on the device, nor on how the model is sharded. For a sharded one every process must call this,
    and parameters are gathered one at a time.

    Returns:
        32 hexadecimal digits. Equal digests mean bit-identical weights.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> before = digest(model)
        >>> with torch.no_grad():
        ...     _ = model.bias.add_(1.0)
        >>> digest(model) == before
        False
    """
    return digest_tensors({**parameters(model), **buffers(model)})


def broadcast_from_rank_0(model: nn.Module, seen: str) -> tuple[int, ...]:
    """Copy weights and buffers of rank 0 to all ranks when digests differ: edits on CUDA may not be deterministic."""
    digests = all_gather(seen)
    others = tuple(rank for rank, one in enumerate(digests) if one != digests[0])
    if others:
        for tensor in {**parameters(model), **buffers(model)}.values():
            value = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(value, src=0)
            with torch.no_grad():
                tensor.copy_(value)
    return others


def digest_tensors(named: Mapping[str, Tensor]) -> str:
    """Hash tensors: names, dtypes, shapes and bits."""
    state = blake3(max_threads=torch.get_num_threads())  # cryptographic, and several times as fast as hashlib's
    for name, tensor in sorted(named.items()):
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = full_tensor(tensor).to("cpu").contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest(length=16)


def bits(tensor: Tensor) -> Tensor:
    """View a tensor's bits as integers, so that NaN equals itself and −0 differs from +0."""
    plain = local(tensor)
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    return plain if plain.dtype == torch.bool else plain.view(_INTEGER_OF_SIZE[plain.element_size()])


def count_changed(before: Tensor, after: Tensor) -> int:
    """Count the elements whose bits differ.

    Example:
        >>> count_changed(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]))
        1
    """
    one, other = bits(before), bits(after)
    if one.device.type != "cpu":
        return int(torch.count_nonzero(one != other))
    return int(np.count_nonzero(one.numpy() != other.numpy()))  # several times as fast as torch is on a CPU


def extremes(tensor: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest element, in one pass: both are NaN when one element is.

    Example:
        >>> extremes(torch.tensor([2.0, -1.0, 3.0]))
        (-1.0, 3.0)
    """
    if not tensor.numel():
        return 0.0, 0.0
    piece = local(tensor)
    low, high = map(float, torch.aminmax(piece)) if piece.numel() else (math.inf, -math.inf)
    return all_reduce_min_max(low, high, device=piece.device) if is_sharded(tensor) else (low, high)


def all_finite(tensor: Tensor) -> bool:
    """Say whether no element is NaN or infinite, in one pass and without a copy.

    Example:
        >>> all_finite(torch.tensor([1.0, torch.inf]))
        False
    """
    return all(math.isfinite(value) for value in extremes(tensor))


def check_differentiable(model: nn.Module) -> None:
    """Raise an error for weights that are lazy, on the meta device, inference tensors or complex."""
    named = {**parameters(model), **buffers(model)}
    problems = [f"{name}: {reason}" for name, t in named.items() if (reason := _problem(t)) is not None]
    if problems:
        raise UnsupportedModelError(f"expected ordinary real weights, saw {'; '.join(problems)}")


def _problem(t: Tensor) -> str | None:
    if is_lazy(t):
        return "not initialised (call the model once)"
    if t.is_meta:
        return "without values, on the meta device (load the weights)"
    if t.is_inference() and t.requires_grad:
        return "made under torch.inference_mode, where nothing can be differentiated (make it outside)"
    if t.is_complex() and t.requires_grad:
        return "complex (hold real and imaginary part as real numbers: torch.view_as_complex)"
    return None


def check_finite(model: nn.Module, *, when: str) -> None:
    """Raise an error for a model with a NaN or an infinity."""
    named = {**parameters(model), **buffers(model)}
    bad = [name for name, t in named.items() if t.is_floating_point() and not all_finite(t)]
    if bad:
        raise NonFiniteError(
            f"expected finite weights {when}, saw NaN or infinity in {', '.join(bad)} of {type(model).__name__}: "
            "the model is damaged; load a checkpoint that is not"
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for squares and sums, at least float32: half-precision squares underflow.

    Example:
        >>> wide(torch.bfloat16)
        torch.float32
    """
    return torch.promote_types(dtype, torch.float32)
