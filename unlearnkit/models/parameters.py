"""A model's parameters and buffers by name; digests, bitwise comparison, pieces and checks of their values."""

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist
from blake3 import blake3
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unlearnkit.distributed.collectives import all_gather, all_reduce_min_max
from unlearnkit.distributed.sharded_tensors import full_tensor, is_sharded, local
from unlearnkit.utils.errors import ConfigurationError, NonFiniteError, UnsupportedModelError, raise_all

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WORD = 8  # bytes
_ON_CPU = 3 << 15  # elements: a rule's arrays fit in the cache of a core, and starting an operation costs little
_ON_DEVICE = 1 << 24  # there the start of each operation costs more than what caching saves
COMPILED_PREFIX = "_orig_mod."  # what torch.compile puts before the names of the module it wraps


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter once, by its qualified name; tied weights are one parameter under their first name.

    Weights that were tied by their memory (``b.data = a.data``) count as tied.
    """
    return {name: places[0][2] for name, places in holders(model).items()}


def holders(model: nn.Module) -> dict[str, list[tuple[str, nn.Module, nn.Parameter]]]:
    """Return every name, module and object of a parameter, by its first name; tied weights have several."""
    found: dict[object, list[tuple[str, nn.Module, nn.Parameter]]] = {}
    for prefix, module in model.named_modules():
        for key, p in module._parameters.items():  # noqa: SLF001 - half the time of named_parameters()
            if p is not None:
                name = f"{prefix}.{key}" if prefix else key
                found.setdefault(_place(p), []).append((name.replace(COMPILED_PREFIX, ""), module, p))
    return {places[0][0]: places for places in found.values()}


def _place(t: Tensor) -> object:
    """Identify the memory of a tensor."""
    if is_lazy(t) or is_sharded(t) or t.is_meta or not t.numel() or not t.data_ptr():
        return id(t)
    return t.data_ptr(), t.shape, t.stride(), t.dtype


def tie_by_memory(model: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]]:
    """Find parameters that are one memory and several objects: module, name, the object there, and the first object.

    Raises:
        UnsupportedModelError: Two tensors share memory in part, or one of two on the same memory is frozen.
    """
    _check_overlaps(model)
    first: dict[object, nn.Parameter] = {}
    held = [(m, key, p) for m in model.modules() for key, p in m._parameters.items() if p is not None]  # noqa: SLF001
    return [(m, key, p, one) for m, key, p in held if (one := first.setdefault(_place(p), p)) is not p]


def plain_attributes(value: object) -> dict[str, bool | int | float | str]:
    """Return the attributes of a module or an objective that are numbers, flags or text, such as ``p`` of dropout."""
    return {name: one for name, one in vars(value).items() if isinstance(one, bool | int | float | str)}


def copy_of(model: nn.Module) -> nn.Module:
    """Copy a model; parameters that are one memory and several objects are one object in the copy.

    Tensors that a module has computed and kept, as the weights of `torch.nn.utils.weight_norm`, are constants there.
    """
    kept = (value for module in model.modules() for value in vars(module).values())
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in kept if isinstance(t, Tensor) and not t.is_leaf}
    for _, _, p, first in tie_by_memory(model):
        memo[id(p)] = copy.deepcopy(first, memo)
    return copy.deepcopy(model, memo)


def _check_overlaps(model: nn.Module) -> None:
    named = [*model.named_parameters(), *model.named_buffers()]
    placed = [(name, t) for name, t in named if t.layout is torch.strided and not isinstance(_place(t), int)]
    problems: list[str] = []
    open_: list[tuple[int, str, Tensor]] = []
    for name, t in sorted(placed, key=lambda one: one[1].data_ptr()):
        if t.requires_grad and 0 in (step for size, step in zip(t.shape, t.stride(), strict=True) if size > 1):
            problems.append(f"the elements of {name} are one and the same memory (expanded): give it a .clone()")
            continue
        open_ = [(end, other, u) for end, other, u in open_ if end > t.data_ptr()]
        problems += [_overlap(other, u, name, t) for _, other, u in open_ if t.requires_grad or u.requires_grad]
        extent = sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True))
        open_.append((t.data_ptr() + t.element_size() * (1 + extent), name, t))
    raise_all(filter(None, problems), where="weights that share memory", error=UnsupportedModelError)


def _overlap(name: str, t: Tensor, other: str, u: Tensor) -> str:
    """Say what is wrong with two tensors that may share memory; "" for tied weights and for neighbours."""
    if _place(t) != _place(u):
        apart = not np.shares_memory(np.asarray(_Addresses(t)), np.asarray(_Addresses(u)))
        return "" if apart else f"{name} and {other} overlap: .clone() one, or tie them: make both one nn.Parameter"
    if t.requires_grad == u.requires_grad:
        return ""
    frozen, edited = (name, other) if u.requires_grad else (other, name)
    return f"{frozen} must not change and is the memory of {edited}, which may be edited: freeze both, or .clone() one"


@final
class _Addresses:
    """The places of a tensor's elements, for numpy, which does not read them."""

    def __init__(self, t: Tensor) -> None:
        size = t.element_size()
        self.__array_interface__ = {
            "version": 3,
            "data": (t.data_ptr(), True),
            "typestr": f"|V{size}",
            "shape": tuple(t.shape),
            "strides": tuple(step * size for step in t.stride()),
        }


def is_frozen(module: nn.Module) -> bool:
    """Say whether a module has parameters of its own, and none of them has ``requires_grad``."""
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(p.requires_grad for p in own)


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
    return {name.replace(COMPILED_PREFIX, ""): b for name, b in model.named_buffers()}


def parameters_and_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and every buffer once, by its qualified name."""
    return {**parameters(model), **buffers(model)}


def dense(gradient: Tensor | None) -> Tensor | None:
    """Return a dense gradient: embeddings with ``sparse=True`` get sparse ones."""
    return gradient if gradient is None else gradient.to_dense()


def device_of(model: nn.Module) -> torch.device:
    """Return the device of all parameters, the CPU for a model without any; an error when there are several."""
    devices = {p.device for p in model.parameters()}
    if len(devices) > 1:
        raise ConfigurationError(
            f"expected all parameters on one device, saw {sorted(map(str, devices))}: move the model with .to(device)"
        )
    return devices.pop() if devices else torch.device("cpu")


def digest(model: nn.Module) -> str:
    """Hash all parameters and buffers: names, dtypes, shapes and bits, as 32 hexadecimal digits.

    It does not depend on the device, nor on how the model is sharded; all processes of a sharded one must call this.

    Examples:
        >>> digest(nn.Identity()) == digest(nn.ReLU()) != digest(nn.Linear(1, 1))
        True
    """
    return digest_tensors(parameters_and_buffers(model))


def broadcast_from_rank_0(model: nn.Module, seen: str) -> tuple[int, ...]:
    """Copy weights and buffers of rank 0 to all ranks when digests differ: edits on CUDA may not be deterministic."""
    digests = all_gather(seen)
    others = tuple(rank for rank, one in enumerate(digests) if one != digests[0])
    if others:
        for tensor in parameters_and_buffers(model).values():
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
        for part in plain_parts(full_tensor(tensor)):
            state.update(part.to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest(length=16)


def plain_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return strided tensors that hold the values of a tensor of any kind; none for one without values."""
    if tensor.is_meta:
        return ()
    if tensor.is_quantized:
        return (tensor.int_repr(),)
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()  # noqa: SLF001 - the public ones want a coalesced tensor
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.resolve_conj().resolve_neg(),)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one kind have the same bits."""
    pairs = list(zip(plain_parts(one), plain_parts(other), strict=True))
    return all(a.shape == b.shape and torch.equal(bits(a), bits(b)) for a, b in pairs)


def bit_sum(tensor: Tensor) -> int:
    """Add the bits of a tensor as integers of 64 bits: several times as fast as `digest_tensors`, for this process."""
    total = 0
    for part in plain_parts(local(tensor)):
        flat = bits(part).reshape(-1)
        size = flat.element_size()
        if flat.storage_offset() * size % _WORD:
            flat = flat.clone()
        whole = flat.nbytes // _WORD * _WORD // size
        total += int(flat[:whole].view(torch.int64).sum()) + int(flat[whole:].sum())
    return total


def bits(tensor: Tensor) -> Tensor:
    """View a tensor's bits as integers, so that NaN equals itself and −0 differs from +0."""
    plain = local(tensor)
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    return plain if plain.dtype == torch.bool else plain.view(_INTEGER_OF_SIZE[plain.element_size()])


def different(before: Tensor, after: Tensor) -> Tensor:
    """Say of each element of two tensors of one shape whether its bits differ."""
    found = bits(before) != bits(after)
    return found.any(-1) if before.is_complex() else found  # of real and imaginary part


def count_changed(before: Tensor, after: Tensor) -> int:
    """Count the elements whose bits differ."""
    return int(torch.count_nonzero(different(before, after)))


def changed_positions(before: Tensor, after: Tensor) -> Tensor:
    """Return the flat positions, in row-major order, at which the bits of two tensors differ."""
    differ = different(before.detach(), after.detach()).reshape(-1)
    if differ.device.type != "cpu":
        return torch.nonzero(differ).view(-1)
    return torch.from_numpy(np.flatnonzero(differ.numpy()))  # several times as fast as torch is on a CPU


def chunk_size(device: torch.device) -> int:
    """Return how many elements of a tensor to work on at a time."""
    return _ON_CPU if device.type == "cpu" else _ON_DEVICE


def chunks(*tensors: Tensor, limit: int) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into views of the same places, each of no more than ``limit`` elements.

    The first tensor is cut along its largest stride, so that each of its pieces is contiguous where the tensor is.
    """
    lead = tensors[0]
    if lead.numel() <= limit:
        yield tensors
        return
    dim = max((d for d in range(lead.dim()) if lead.shape[d] > 1), key=lead.stride)
    length = lead.shape[dim]
    rows = max(1, limit * length // lead.numel())
    for start in range(0, length, rows):
        part = min(rows, length - start)
        yield from chunks(*(t.narrow(dim, start, part) for t in tensors), limit=limit)


def in_memory_order(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Permute the dimensions of all tensors by the strides of the first, the largest first."""
    lead = tensors[0]
    if lead.is_contiguous():
        return tensors
    order = sorted(range(lead.dim()), key=lead.stride, reverse=True)
    return tuple(t.permute(order) for t in tensors)


def extremes(tensor: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest element, in one pass: both are NaN when one element is."""
    if not tensor.numel():
        return 0.0, 0.0
    piece = local(tensor)
    if piece.element_size() == 1 and piece.is_floating_point():  # no operation takes a float8
        piece = piece.float()
    low, high = map(float, torch.aminmax(piece)) if piece.numel() else (math.inf, -math.inf)
    return all_reduce_min_max(low, high, device=piece.device) if is_sharded(tensor) else (low, high)


def all_finite(tensor: Tensor) -> bool:
    """Say whether no element is NaN or infinite, in one pass and without a copy."""
    return all(math.isfinite(value) for value in extremes(tensor))


def check_editable(model: nn.Module) -> None:
    """Raise an error for weights that are lazy, on the meta device or complex, and where none is trainable."""
    _refuse(parameters_and_buffers(model), _not_editable)
    trainable(model)


def check_differentiable(model: nn.Module) -> None:
    """Raise an error for weights that are lazy, on the meta device, inference tensors or complex."""
    _refuse(parameters_and_buffers(model), _not_differentiable)


def _refuse(named: Mapping[str, Tensor], problem: Callable[[Tensor], str]) -> None:
    problems = [f"{name}: {reason}" for name, t in named.items() if (reason := problem(t))]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UnsupportedModelError(f"expected ordinary real weights, saw {'; '.join(problems[:3])}{more}")


def _absent(t: Tensor) -> str:
    if t.is_meta and isinstance(t, nn.Parameter):
        return "without values, on the meta device (load them; accelerate must not offload, so use one device)"
    return ""


def _not_editable(t: Tensor) -> str:
    if is_lazy(t):
        return "not initialised (call the model once)"
    if absent := _absent(t):
        return absent
    if t.is_complex() and t.requires_grad:
        return "complex (hold real and imaginary part as real numbers: torch.view_as_complex)"
    return ""


def _not_differentiable(t: Tensor) -> str:
    if problem := _not_editable(t):
        return problem
    if t.is_inference() and t.requires_grad:
        return "made under torch.inference_mode, where nothing can be differentiated (make it outside)"
    return ""


def check_finite(model: nn.Module, *, when: str, buffers_too: Collection[str] = ()) -> None:
    """Raise an error for a NaN or an infinity in the weights, or in some buffers; others may hold what they like.

    Weights without values, on the meta device, are refused too.
    """
    weights = parameters(model)
    _refuse(weights, _absent)
    named = {**weights, **{name: t for name, t in buffers(model).items() if name in buffers_too}}
    bad = [name for name, t in named.items() if t.is_floating_point() and not all_finite(t)]
    if bad:
        raise NonFiniteError(
            f"expected finite weights {when}, saw NaN or infinity in {', '.join(bad)} of {type(model).__name__}: "
            "the model is damaged; load a checkpoint that is not"
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for squares and sums, at least float32: half-precision squares underflow."""
    return torch.promote_types(dtype, torch.float32)
