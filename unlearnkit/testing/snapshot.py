"""What a model and its surroundings look like, bit by bit: the laws compare two of these."""

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
    """Everything about a model that somebody could notice, taken without help of the code under test.

    Attributes:
        parameters: Name to (a copy of the value, ``requires_grad``).
        buffers: Name to a copy.
        grads: Parameter name to a copy of ``.grad``, or None.
        modes: Module name to train (True) or eval (False) mode.
        structure: Every name, tied ones and modules included, to the identity of the object.
        rng: The states of Python's, numpy's and torch's generators.
    """

    parameters: Mapping[str, tuple[Tensor, bool]]
    buffers: Mapping[str, Tensor]
    grads: Mapping[str, Tensor | None]
    modes: Mapping[str, bool]
    structure: Mapping[str, int]
    rng: Mapping[str, Any]

    @classmethod
    def take(cls, model: nn.Module) -> "Snapshot":
        """Look at a model.

        Args:
            model: Left as it is.

        Returns:
            Copies of what was seen.
        """
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
        """Name what differs in some parts.

        Args:
            other: A later snapshot of the same model.
            parts: Names of attributes of this class; all when none is given.

        Returns:
            Entries such as ``"grads['head.weight']"``.
        """
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
        """Return the parameters that may be edited, or those that may not.

        Args:
            trainable: Which.

        Returns:
            Name to value.
        """
        return {name: value for name, (value, flag) in self.parameters.items() if flag is trainable}


def same(one: Any, other: Any) -> bool:
    """Compare two values, tensors and arrays inside them bit by bit.

    Args:
        one: Tensors, arrays, numbers, strings, None, nested in tuples, lists or mappings.
        other: The other.

    Returns:
        Whether they are the same; a NaN equals itself, −0 differs from +0.

    Example:
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
