"""An edit of a whole model, without the model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, final

import attrs
import torch
from torch import Tensor

from unlearnkit.models.parameters import digest_tensors
from unlearnkit.unlearning.patch.tensor import TensorPatch
from unlearnkit.utils.errors import MismatchError, raise_all

State = dict[str, Tensor]
T = TypeVar("T", bound=Mapping[str, Tensor])


@final
@attrs.frozen(kw_only=True, eq=False)
class Patch:
    """An edit of a model, without the model.

    Attributes:
        tensors: Name to patch; tensors that the edit leaves alone are left out.
        before: Digest of the state that it is made for.
        after: Digest of what it makes of it.
        about: What a reader wants to know: method, options, requests.

    Example:
        >>> before = {"w": torch.tensor([1.0, 2.0, 3.0])}
        >>> after = {"w": torch.tensor([1.0, 1.0, 0.0])}
        >>> patch = Patch.between(before, after)
        >>> patch.tensors["w"].factor
        tensor([0.5000, 0.0000], dtype=torch.float64)
        >>> patch.apply(before)["w"], patch.revert(after)["w"]
        (tensor([1., 1., 0.]), tensor([1., 2., 3.]))
    """

    tensors: Mapping[str, TensorPatch]
    before: str
    after: str
    about: Mapping[str, Any] = attrs.field(factory=dict)

    @classmethod
    def between(
        cls,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        *,
        keep_old: bool = True,
        about: Mapping[str, Any] | None = None,
    ) -> "Patch":
        """Describe what turns one state into another.

        Args:
            before: Name to tensor, as `unlearnkit.models.checkpoint.model_state` returns.
            after: The same names, shapes and dtypes.
            keep_old: Whether to keep the old values, so that it can be reverted.
            about: Plain values to keep with it.

        Returns:
            The patch.
        """
        raise_all(_differences(before, after), where="a patch between two models")
        found = {n: TensorPatch.between(before[n], after[n], keep_old=keep_old) for n in before}
        tensors = {name: patch for name, patch in found.items() if patch.changed}
        return cls(tensors=tensors, before=digest_tensors(before), after=digest_tensors(after), about=dict(about or {}))

    @property
    def reversible(self) -> bool:
        """Whether the old values are there."""
        return all(patch.old is not None for patch in self.tensors.values())

    @property
    def changed(self) -> int:
        """How many weights it changes."""
        return sum(patch.changed for patch in self.tensors.values())

    def apply(self, state: Mapping[str, Tensor]) -> State:
        """Return the edited state.

        Args:
            state: The one that the patch is made for; left as it is.

        Returns:
            Name to tensor; those that are not edited are the same objects.
        """
        self._check(state, self.before, "made for")
        edited = {n: self.tensors[n].apply(t) if n in self.tensors else t for n, t in state.items()}
        return _of_digest(edited, self.after)

    def revert(self, state: Mapping[str, Tensor]) -> State:
        """Return the state before the edit.

        Args:
            state: The edited one; left as it is.

        Returns:
            Name to tensor.
        """
        self._check(state, self.after, "that makes")
        earlier = {n: self.tensors[n].revert(t) if n in self.tensors else t for n, t in state.items()}
        return _of_digest(earlier, self.before)

    def undo(self, state: Mapping[str, Tensor]) -> None:
        """Put the old values into the tensors of an edited model: as `revert`, with no second copy of any.

        Args:
            state: The edited state, changed in place; an exception after the first check leaves it half changed.
        """
        self._check(state, self.after, "that makes")
        for name, patch in self.tensors.items():
            patch.undo(state[name])
        _of_digest(state, self.before)

    def without_old(self) -> "Patch":
        """Drop the old values: it can then be applied, not reverted.

        Returns:
            A smaller patch.
        """
        return attrs.evolve(self, tensors={n: attrs.evolve(p, old=None) for n, p in self.tensors.items()})

    def then(self, other: "Patch", state: Mapping[str, Tensor]) -> "Patch":
        """Make one patch of two.

        Args:
            other: Made for what this one makes.
            state: What this one is made for: factors alone do not say how products were rounded in between.

        Returns:
            The patch that does both.

        Raises:
            MismatchError: The other is made for another model.
        """
        if other.before != self.after:
            raise MismatchError(f"expected a second patch made for {self.after}, saw one made for {other.before}")
        last = other.apply(self.apply(state))
        about = {"first": dict(self.about), "then": dict(other.about)}
        return Patch.between(state, last, keep_old=self.reversible and other.reversible, about=about)

    def inspect(self) -> dict[str, Any]:
        """Describe it in plain values.

        Returns:
            Digests, how many weights of which tensors, the smallest and largest factor, whether it can be reverted.
        """
        factors = [p.factor for p in self.tensors.values() if len(p.factor)]
        every = torch.cat(factors) if factors else torch.empty(0)
        return {
            "before": self.before,
            "after": self.after,
            "changed": self.changed,
            "tensors": {name: patch.changed for name, patch in self.tensors.items()},
            "factors": [float(every.min()), float(every.max())] if len(every) else [],
            "reversible": self.reversible,
            "about": dict(self.about),
        }

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically; see `unlearnkit.unlearning.patch.file.save`.

        Args:
            path: Where to.
        """
        from unlearnkit.unlearning.patch.file import save  # noqa: PLC0415 - the file format builds on this class

        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "Patch":
        """Read what `save` wrote, and check it whole.

        Args:
            path: The file.

        Returns:
            The patch.
        """
        from unlearnkit.unlearning.patch.file import load  # noqa: PLC0415 - the file format builds on this class

        return load(path)

    def _check(self, state: Mapping[str, Tensor], expected: str, what: str) -> None:
        seen = digest_tensors(state)
        if seen != expected:
            raise MismatchError(f"expected the model that the patch is {what}, {expected}, saw {seen}: another model")
        problems = [p for name, patch in self.tensors.items() for p in patch.problems(name, state.get(name))]
        raise_all(problems, where="the patch does not fit the model")


def _of_digest(state: T, expected: str) -> T:
    seen = digest_tensors(state)
    if seen != expected:
        raise MismatchError(f"the patch made the model {seen}, expected {expected}: nothing was changed")
    return state


def _differences(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            yield f"{name}: only in the model {'after' if name in after else 'before'}"
        elif (before[name].shape, before[name].dtype) != (after[name].shape, after[name].dtype):
            yield (
                f"{name}: {tuple(before[name].shape)} of {before[name].dtype} against {tuple(after[name].shape)} of "
                f"{after[name].dtype}"
            )
