"""Runs a block with its own random state: the global generators are restored after it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_CPU = torch.device("cpu")


@contextmanager
def private_rng(device: torch.device = _CPU, *, seed: int | None = None) -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch after the block; with a seed, seed them for it."""
    python, numpy_state = random.getstate(), np.random.get_state()
    forked = [device] if _is_accelerator(device) else []
    try:
        with torch.random.fork_rng(devices=forked, device_type=device.type if forked else "cuda"):
            if seed is not None:
                _seed_all(device, seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)


def _seed_all(device: torch.device, seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed: that also seeds every accelerator, whose state fork_rng does not put back.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif _is_accelerator(device):
        torch.get_device_module(device).manual_seed(seed)


def _is_accelerator(device: torch.device) -> bool:
    return device.type not in {"cpu", "meta"}
