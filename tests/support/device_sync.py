"""Detects on a CPU the torch operations that would synchronise with a CUDA device."""

from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from unlearnkit.importance.fisher.engine.rule import Call

CUDA = torch.device("cuda")
# Operations that need a value on the host: a number, or a shape that depends on values.
WAITS = frozenset(
    {
        *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_static", "nonzero_numpy", "argwhere"),
        *("masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
        *("bincount", "repeat_interleave", "_assert_tensor_metadata_host"),
    }
)
INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
# Operations that create a tensor from host values, which must be copied to the device.
OF_THE_HOST = frozenset({"lift_fresh", "lift_fresh_copy"})
# Functions that read values; on CPU tensors they call no operation.
READS = frozenset({"tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__", "__index__", "__array__"})


class Waits(TorchDispatchMode):
    """Records every operation that would synchronise, and counts all operations."""

    def __init__(self):
        super().__init__()
        self.seen, self.count = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += 1
        if name in WAITS or name in OF_THE_HOST or (name in INDEXED and _by_mask(args[1])) or _sent(func, args, kwargs):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Records every call that reads tensor values, except inside autograd functions."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in READS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def _by_mask(indices):
    return any(isinstance(i, Tensor) and i.dtype in {torch.bool, torch.uint8} for i in indices)


def _sent(func, args, kwargs):
    """Whether a tensor with dimensions is copied from the host to the device."""
    tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor) and t.dim()]
    to = {t.device.type for t in tensors} | {str(d).split(":")[0] for d in ((kwargs or {}).get("device"),) if d}
    return any(t.device.type == "cpu" for t in tensors) and "cuda" in to


def on_fake_cuda(value, mode: FakeTensorMode):
    """Replace every tensor by a fake CUDA tensor of the same sizes and strides."""
    if isinstance(value, Tensor):
        with mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CUDA)
    if isinstance(value, Mapping):
        return {key: on_fake_cuda(item, mode) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return type(value)(on_fake_cuda(item, mode) for item in value)
    if isinstance(value, Call):
        return attrs.evolve(
            value, **{f.alias: on_fake_cuda(getattr(value, f.name), mode) for f in attrs.fields(type(value)) if f.init}
        )
    return value
