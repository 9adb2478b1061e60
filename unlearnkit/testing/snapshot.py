"""The state of a model and of the random generators, bit by bit: the laws compare two of these."""

import random
from collections.abc import Mapping
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.models.parameters import bits


@final
@attrs.frozen(kw_only=True, eq=False, repr=False)
class Snapshot:
    """Everything observable about a model and the global random state, read independently of the code under test.

    Attributes:
        parameters: Name to (a copy of the value, ``requires_grad``).
        structure: Every name, tied ones and modules included, to the ``id`` of the object.
    """

    parameters: Mapping[str, tuple[Tensor, bool]]
    buffers: Mapping[str, Tensor]
    grads: Mapping[str, Tensor | None]
    modes: Mapping[str, bool]
    structure: Mapping[str, int]
    rng: Mapping[str, Any]

    @classmethod
    def take(cls, model: nn.Module) -> "Snapshot":
        """Copy everything about a model."""
        named = dict(model.named_parameters())
        every = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
            *model.named_modules(remove_duplicate=False),
        ]
        return cls(
            parameters={name: (p.detach().clone(), p.requires_grad) for name, p in named.items()},
            buffers={name: b.detach().clone() for name, b in model.named_buffers()},
            grads={name: None if p.grad is None else p.grad.detach().clone() for name, p in named.items()},
            modes={name: module.training for name, module in model.named_modules()},
            structure={name: id(member) for name, member in every},
            rng={"random": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()},
        )

    def differences(self, other: "Snapshot", *parts: str) -> list[str]:
        """Name what differs from a later snapshot, as ``"grads['head.weight']"``; in all parts, or in those named."""
        found = []
        for part in parts or [field.name for field in attrs.fields(Snapshot)]:
            mine, theirs = getattr(self, part), getattr(other, part)
            found += [
                f"{part}[{key!r}]"
                for key in {**mine, **theirs}
                if key not in mine or key not in theirs or not same(mine[key], theirs[key])
            ]
        return found

    def weights(self, *, trainable: bool) -> dict[str, Tensor]:
        """Return the values of the trainable parameters, or of the frozen ones."""
        return {name: value for name, (value, flag) in self.parameters.items() if flag is trainable}


def same(one: Any, other: Any) -> bool:
    """Compare two values bit by bit, nested ones too: NaN equals NaN, −0 differs from +0.

    Examples:
        >>> same(torch.tensor([float("nan")]), torch.tensor([float("nan")])), same(-0.0, 0.0)
        (True, False)
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        kinds = [(t.shape, t.dtype, t.device) for t in (one, other)]
        return kinds[0] == kinds[1] and torch.equal(bits(one.contiguous()), bits(other.contiguous()))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return repr(one) == repr(other)
    return type(one) is type(other) and bool(one == other)
