"""The global state of Python, numpy and torch that foreign code could change for everybody."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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


_STATE: Mapping[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, _set_device),
    "the grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "the float32 precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "the random state of torch": (_torch_generator, _set_torch_generator),
    "the random state of Python": (random.getstate, random.setstate),
    "the random state of numpy": (_numpy_generator, _set_numpy_generator),
}


@contextmanager
def restored_globals() -> Iterator[list[str]]:
    """Put global state back after the block; the list that is yielded then names what was changed."""
    before, changed = {name: read() for name, (read, _) in _STATE.items()}, list[str]()
    try:
        yield changed
    finally:
        for name, (read, write) in _STATE.items():
            if read() != before[name]:
                changed.append(name)
                write(before[name])
