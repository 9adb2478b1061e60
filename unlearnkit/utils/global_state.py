"""The global state of Python, numpy and torch that foreign code could change for everybody."""

# torch.cuda keeps seeds that were set before CUDA started in private lists; there is no public way to read them.
# ruff: noqa: SLF001

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np
import torch


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # None is cpu, without a mode for each call


def _torch_generator() -> bytes:
    return bytes(torch.get_rng_state().numpy().data)


def _set_torch_generator(state: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _numpy_generator() -> tuple[Any, ...]:
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())
    return name, keys.tobytes(), *rest


def _set_numpy_generator(state: tuple[Any, ...]) -> None:
    name, keys, *rest = state
    np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), *rest))


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(state: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def _cudnn() -> tuple[bool, bool, bool]:
    cudnn: Any = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic


def _set_cudnn(state: tuple[bool, bool, bool]) -> None:
    cudnn: Any = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = state


def _autocast() -> tuple[bool, ...]:
    return tuple(map(torch.is_autocast_enabled, _DEVICES))


def _set_autocast(state: tuple[bool, ...]) -> None:
    for device, enabled in zip(_DEVICES, state, strict=True):
        torch.set_autocast_enabled(device, enabled)


def _precision_switches() -> list[Any]:
    backends: Any = torch.backends
    owners = (backends, backends.cuda, backends.cudnn, backends.mkldnn)
    parts = [getattr(owner, name, None) for owner in owners[1:] for name in ("matmul", "conv", "rnn")]
    return [one for one in (*owners, *parts) if hasattr(one, "fp32_precision")]


def _precision() -> tuple[str | None, list[str]]:
    try:
        old_style = torch.get_float32_matmul_precision()
    except RuntimeError:  # there is none, where the newer switches were used
        old_style = None
    return old_style, [switch.fp32_precision for switch in _precision_switches()]


def _set_precision(state: tuple[str | None, list[str]]) -> None:
    if state[0] is not None:
        torch.set_float32_matmul_precision(state[0])
    for switch, precision in zip(_precision_switches(), state[1], strict=True):  # those of others follow the first
        if switch.fp32_precision != precision:
            switch.fp32_precision = precision


def _cuda_generators() -> list[bytes] | None:
    """Return the states of CUDA's generators, or None before CUDA has started, which this must not do."""
    cuda: Any = torch.cuda
    return [bytes(state.numpy().data) for state in cuda.get_rng_state_all()] if cuda.is_initialized() else None


def _set_cuda_generators(states: list[bytes] | None) -> None:
    if states is not None:
        cuda: Any = torch.cuda
        cuda.set_rng_state_all([torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states])


def _waiting_seeds() -> tuple[list[Any], dict[str, Any]]:
    """Return what will seed CUDA when it starts."""
    cuda: Any = torch.cuda
    return list(filter(_sets_a_state, cuda._queued_calls)), dict(vars(cuda._lazy_seed_tracker))


def _sets_a_state(queued: tuple[Any, ...]) -> bool:
    return "set_rng_state" in getattr(queued[0], "__qualname__", "")


def _set_waiting_seeds(state: tuple[list[Any], dict[str, Any]]) -> None:
    cuda: Any = torch.cuda
    cuda._queued_calls[:] = [one for one in cuda._queued_calls if not _sets_a_state(one)] + state[0]
    vars(cuda._lazy_seed_tracker).update(state[1])


def _leave_inference_mode(_: bool) -> None:
    raise RuntimeError("only its own context can")


_DEVICES = ("cpu", "cuda")
_STATE: Mapping[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, _set_device),
    "the grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "inference mode": (torch.is_inference_mode_enabled, _leave_inference_mode),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the number of interop threads": (torch.get_num_interop_threads, torch.set_num_interop_threads),
    "deterministic algorithms": (_deterministic, _set_deterministic),
    "cuDNN's flags": (_cudnn, _set_cudnn),
    "anomaly detection": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "the float32 precision": (_precision, _set_precision),
    "autocast": (_autocast, _set_autocast),
    "the random state of torch": (_torch_generator, _set_torch_generator),
    "the random state of CUDA": (_cuda_generators, _set_cuda_generators),
    "the seed of CUDA": (_waiting_seeds, _set_waiting_seeds),
    "the random state of Python": (random.getstate, random.setstate),
    "the random state of numpy": (_numpy_generator, _set_numpy_generator),
}


@contextmanager
def restored_globals() -> Iterator[dict[str, bool]]:
    """Put global state back after the block; what is yielded then names what was changed, and whether it is back."""
    before, changed = {name: read() for name, (read, _) in _STATE.items()}, dict[str, bool]()
    try:
        yield changed
    finally:
        for name, (read, write) in _STATE.items():
            if read() == before[name]:
                continue
            with suppress(RuntimeError):  # torch sets the number of interop threads once
                write(before[name])
            changed[name] = read() == before[name]
