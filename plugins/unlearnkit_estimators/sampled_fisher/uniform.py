"""Uniform numbers that belong to a sample: the same in every order and every batch."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

_STEPS = 2**53  # float64 holds every multiple of 2⁻⁵³ in [0, 1)


def uniforms(batch: Any, *, seed: int, draws: int) -> Tensor:
    """Hash each sample into uniform numbers.

    Args:
        batch: Tensors in tuples, lists, mappings and objects; dimension 0 is the sample.
        seed: Another seed, other numbers.
        draws: How many numbers for each sample.

    Returns:
        Shape (draws, samples), float64, in [0, 1), on the CPU.

    Example:
        >>> one, two = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [1.0]])
        >>> torch.equal(uniforms((one,), seed=0, draws=3), uniforms((two,), seed=0, draws=3).flip(1))
        True
    """
    columns = [_bytes(t) for t in _tensors(batch)]
    salt = seed.to_bytes((seed.bit_length() + 8) // 8, "big")
    rows = []
    for sample in zip(*columns, strict=True):
        state = hashlib.blake2b(salt.rjust(16, b"\0"), digest_size=8)
        for part in sample:
            state.update(len(part).to_bytes(8, "big") + part)
        root = state.digest()
        words = (hashlib.blake2b(root + k.to_bytes(8, "big"), digest_size=8).digest() for k in range(draws))
        rows.append([(int.from_bytes(word, "big") >> 11) / _STEPS for word in words])
    return torch.tensor(rows, dtype=torch.float64).T.contiguous()


def _bytes(tensor: Tensor) -> list[bytes]:
    """Return the bytes of each row."""
    rows = tensor.detach().to("cpu").contiguous().reshape(len(tensor), -1)
    if rows.numel() == 0:
        return [b""] * len(tensor)
    return [row.numpy().tobytes() for row in rows.view(torch.uint8)]


def _tensors(batch: Any) -> list[Tensor]:
    """Find every tensor of a batch, in order, in all that the framework takes for a batch."""
    if isinstance(batch, Tensor):
        return [batch]
    items: Iterable[Any] = ()
    if isinstance(batch, Mapping):
        items = batch.values()
    elif isinstance(batch, tuple | list):
        items = batch
    elif dataclasses.is_dataclass(batch):
        items = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    elif attrs.has(type(batch)):
        items = (getattr(batch, field.name) for field in attrs.fields(type(batch)))
    return [t for item in items for t in _tensors(item)]
