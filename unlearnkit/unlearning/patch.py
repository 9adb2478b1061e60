"""An edit as a file of its own, without the model: changed positions, factors and old values."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import attrs
import torch
from torch import Tensor

from unlearnkit.models.parameters import changed_positions, different, digest_tensors
from unlearnkit.utils.errors import MismatchError, StoreError, raise_all
from unlearnkit.utils.safetensors import load_tensors, save_tensors

State = dict[str, Tensor]

FORMAT = "unlearnkit-patch-1"
_PARTS = ("index", "factor", "value_index", "value", "old")


@final
@attrs.frozen(kw_only=True, eq=False)
class TensorPatch:
    """The edit of one tensor: the elements ``index`` times ``factor`` (float64), rounded to the tensor's dtype.

    Elements are numbered in row-major order. Those that no factor takes to their new value, as 0 that became 7, are in
    ``value_index``, with the new values in ``value``. ``old`` has the old values of both, or is None.
    """

    index: Tensor
    factor: Tensor
    value_index: Tensor
    value: Tensor
    old: Tensor | None = None

    @classmethod
    def between(cls, before: Tensor, after: Tensor, *, keep_old: bool) -> "TensorPatch":
        """Compare two tensors of one shape and dtype."""
        was, now = before.detach().cpu().reshape(-1), after.detach().cpu().reshape(-1)
        where = changed_positions(was, now)
        was, now = was[where], now[where]
        factor = torch.full(was.shape, torch.nan, dtype=torch.float64)
        if was.is_floating_point():
            factor = now.double() / was.double()
        exact = ~different(_times(was, factor), now)
        old = torch.cat([was[exact], was[~exact]]) if keep_old else None
        return cls(index=where[exact], factor=factor[exact], value_index=where[~exact], value=now[~exact], old=old)

    @staticmethod
    def bytes_each(size: int) -> int:
        """Return the bytes that a changed element of ``size`` bytes takes."""
        return 8 + 8 + size  # position, factor and old value

    @property
    def changed(self) -> int:
        """How many elements it changes."""
        return len(self.index) + len(self.value_index)

    def apply(self, tensor: Tensor) -> Tensor:
        """Return the edited tensor: a new one, contiguous, on the CPU."""
        flat = tensor.detach().cpu().reshape(-1).clone()
        flat[self.index] = _times(flat[self.index], self.factor)
        flat[self.value_index] = self.value
        return flat.reshape(tensor.shape)

    def undo(self, tensor: Tensor) -> None:
        """Put the old values into an edited tensor, in place."""
        if self.old is None:
            raise MismatchError("expected a patch with old values, saw one without: it can be applied, not reverted")
        target = tensor.detach()
        flat = target.reshape(-1)  # a view, but of a tensor with gaps
        flat[torch.cat([self.index, self.value_index]).to(flat.device)] = self.old.to(flat.device)
        if not target.is_contiguous():
            target.copy_(flat.view(target.shape))

    def problems(self, name: str, tensor: Tensor | None) -> Iterator[str]:
        """Yield what does not fit the tensor of this name, or its absence."""
        if tensor is None:
            yield f"{name}: in the patch, but not in the model"
            return
        for part, index in (("index", self.index), ("value_index", self.value_index)):
            if len(index) and not (int(index[0]) >= 0 and int(index[-1]) < tensor.numel()):
                seen = f"{int(index[0])} … {int(index[-1])}"
                yield f"{name}: expected {part} between 0 and {tensor.numel() - 1}, saw {seen}"
        kept = [self.value, *([self.old] if self.old is not None else [])]
        if any(len(t) and t.dtype != tensor.dtype for t in kept):
            yield f"{name}: expected values of {tensor.dtype}, saw {self.value.dtype}"

    def malformed(self, name: str) -> Iterator[str]:
        """Yield what is wrong with it, whatever the tensor."""
        for part, index in (("index", self.index), ("value_index", self.value_index)):
            if index.dtype != torch.int64 or index.ndim != 1 or bool((index.diff() <= 0).any()):
                yield f"{name}: expected {part} as rising int64 numbers, saw {index.dtype} {tuple(index.shape)}"
        if self.factor.dtype != torch.float64 or self.factor.shape != self.index.shape:
            yield f"{name}: expected one float64 factor per index, saw {self.factor.dtype} {tuple(self.factor.shape)}"
        if self.value.shape != self.value_index.shape or (self.old is not None and self.old.shape != (self.changed,)):
            yield f"{name}: expected one value per index"


@final
@attrs.frozen(kw_only=True, eq=False)
class Patch:
    """An edit of a model, without the model.

    Attributes:
        tensors: Name to patch; tensors that the edit leaves alone are left out.
        before: Digest of the state that it applies to.
        after: Digest of the edited state.
        about: What a reader wants to know: method, options, requests.

    Examples:
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
        """Compare two states of the same names, shapes and dtypes, as `unlearnkit.models.model_state` returns them.

        A patch without the old values (``keep_old=False``) cannot be reverted. ``about`` holds plain values.
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
        """Return the edited state; tensors that are not edited are the same objects, and ``state`` is left as it is."""
        self._check(state, self.before, "made for")
        edited = {n: self.tensors[n].apply(t) if n in self.tensors else t for n, t in state.items()}
        return _of_digest(edited, self.after)

    def revert(self, state: Mapping[str, Tensor]) -> State:
        """Return the state before the edit; the edited ``state`` is left as it is."""
        earlier = {n: t.detach().cpu().clone() if n in self.tensors else t for n, t in state.items()}
        self.undo(earlier)
        return earlier

    def undo(self, state: Mapping[str, Tensor]) -> None:
        """Put the old values into the tensors of an edited model, in place; an error may leave it half changed."""
        self._check(state, self.after, "that makes")
        for name, patch in self.tensors.items():
            patch.undo(state[name])
        _of_digest(dict(state), self.before)

    def without_old(self) -> "Patch":
        """Return a smaller patch that can be applied, not reverted."""
        return attrs.evolve(self, tensors={n: attrs.evolve(p, old=None) for n, p in self.tensors.items()})

    def then(self, other: "Patch", state: Mapping[str, Tensor]) -> "Patch":
        """Make one patch of two; the products were rounded in between, so the ``state`` before the first is needed."""
        if other.before != self.after:
            raise MismatchError(f"expected a second patch made for {self.after}, saw one made for {other.before}")
        last = other.apply(self.apply(state))
        about = {"first": dict(self.about), "then": dict(other.about)}
        return Patch.between(state, last, keep_old=self.reversible and other.reversible, about=about)

    def inspect(self) -> dict[str, Any]:
        """Return digests, changed weights by tensor, range of the factors and reversibility, as plain values."""
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
        """Write one safetensors file, atomically."""
        tensors = {
            f"{part}/{name}": getattr(one, part)
            for name, one in self.tensors.items()
            for part in _PARTS
            if getattr(one, part) is not None
        }
        header = json.dumps({"before": self.before, "after": self.after, "about": dict(self.about)})
        save_tensors(tensors, path, {"format": FORMAT, "patch": header, "digest": _file_digest(header, tensors)})

    @classmethod
    def load(cls, path: str | Path) -> "Patch":
        """Read what `save` wrote; a `StoreError` for a file that is no patch, or was changed."""
        mapped, metadata = load_tensors(path, failure=": expected a patch, saw")
        if metadata.get("format") != FORMAT:
            raise StoreError(f"{path}: expected a patch ({FORMAT}), saw format {metadata.get('format')!r}")
        try:
            if metadata.get("digest") != _file_digest(metadata.get("patch", ""), mapped):
                raise StoreError(f"{path}: expected the digest of what was written, saw another: the patch was changed")
            header, found = json.loads(metadata["patch"]), _tensor_patches({n: t.clone() for n, t in mapped.items()})
            digests = {key: str(header[key]) for key in ("before", "after")}
            return cls(tensors=found, about=dict(header["about"]), **digests)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: expected a patch, saw: {error}") from error

    def _check(self, state: Mapping[str, Tensor], expected: str, what: str) -> None:
        seen = digest_tensors(state)
        if seen != expected:
            raise MismatchError(f"expected the model that the patch is {what}, {expected}, saw {seen}: another model")
        problems = [p for name, patch in self.tensors.items() for p in patch.problems(name, state.get(name))]
        raise_all(problems, where="the patch does not fit the model")


def _times(values: Tensor, factor: Tensor) -> Tensor:
    """Multiply in double precision, and round to the dtype of the values."""
    return (values.to(torch.complex128 if values.is_complex() else torch.float64) * factor).to(values.dtype)


def _of_digest(state: State, expected: str) -> State:
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


def _file_digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.blake2b(f"{header}|{digest_tensors(tensors)}".encode(), digest_size=16).hexdigest()


def _tensor_patches(tensors: Mapping[str, Tensor]) -> dict[str, TensorPatch]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(name, {})[part] = tensor
    found = {name: TensorPatch(**part) for name, part in parts.items()}
    problems = [problem for name, patch in found.items() for problem in patch.malformed(name)]
    raise_all(problems, where="the patch", error=StoreError)
    return found
