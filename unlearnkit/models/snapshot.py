"""Snapshots of a model that detect and undo, bit by bit, what other code does to it."""

from collections.abc import Container
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from unlearnkit.distributed.sharded_tensors import local
from unlearnkit.models.parameters import (
    bit_sum,
    bits,
    changed_positions,
    check_finite,
    digest,
    parameters,
    plain_attributes,
    same_bits,
    tie_by_memory,
)
from unlearnkit.models.parameters import buffers as _buffers_of

_LARGEST_POSITION = torch.iinfo(torch.int32).max
_Members = dict[Any, Any]
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MEMBERS = ("_parameters", "_buffers", "_modules", *_HOOKS)


@final
class UndoLog:
    """Overwrites tensors and keeps the old values where, and only where, bits change."""

    def __init__(self) -> None:
        # Target, flat positions (None: all of them), old bits.
        self._entries: list[tuple[Tensor, Tensor | None, Tensor]] = []

    @property
    def nbytes(self) -> int:
        """Memory of the old values and their positions."""
        return sum(t.nbytes for _, *kept in self._entries for t in kept if t is not None)

    def write(self, target: Tensor, new: Tensor, *, positions: Tensor | None = None) -> int:
        """Overwrite a tensor and count what changed; ``positions`` are its `changed_positions`, where known."""
        if positions is None:
            positions = changed_positions(target, new)
        changed = positions.numel()
        if not changed:
            return 0
        old, fresh = bits(target.detach()), bits(new.detach())
        # Logged before it is overwritten, so that an interrupt between the two can be undone.
        small = changed * (4 + old.element_size()) < old.nbytes and old.numel() <= _LARGEST_POSITION
        if small and old.is_contiguous():
            flat = old.view(-1)
            values = flat.index_select(0, positions)
            self._entries.append((old, positions.int(), values))
            flat.index_copy_(0, positions, fresh.reshape(-1).index_select(0, positions))
        else:
            self._entries.append((old, None, old.clone()))
            old.copy_(fresh)
        return changed

    def undo(self) -> None:
        """Put the old bits back, the last first; undoing twice is undoing once."""
        for target, positions, values in reversed(self._entries):
            if positions is None:
                target.copy_(values)
            else:
                target.view(-1).index_copy_(0, positions.long(), values)


@final
class ModelSnapshot:
    """A snapshot of a model: weights, buffers, gradients, modes, structure.

    Without ``copies`` of the weights a change of one is noticed by the sum of its bits, but only what is written
    through ``undo_log`` can be put back.
    """

    def __init__(self, model: nn.Module, *, copies: bool = True) -> None:
        self.undo_log = UndoLog()
        self._ties = tie_by_memory(model)
        self._names = {m: name or type(m).__name__ for name, m in model.named_modules()}
        self._modules: dict[nn.Module, tuple[bool, tuple[_Members, ...]]] = {
            m: (m.training, tuple(dict(getattr(m, members)) for members in _MEMBERS)) for m in self._names
        }
        self._model = model
        self._finite = False
        self._parameters = _Tensors(parameters(model), copies=copies)
        self._buffers = _Tensors(_buffers_of(model))
        everyone = [*self._parameters.objects.values(), *(alias for _, _, alias, _ in self._ties)]
        self._flags = {p: p.requires_grad for p in everyone}
        self._grads = {p: p.grad for p in self._flags}
        self._hooks = {p: tuple(dict(hooks or {}) for hooks in _hooks_of(p)) for p in everyone}
        self._attributes = {m: _attributes_of(m) for m in self._names}

    @cached_property
    def digest(self) -> str:
        """Digest of the model, taken once: ask for it before anything is changed."""
        return digest(self._model)

    def check_finite(self, *, when: str) -> None:
        """Raise an error for a NaN or an infinity in the model; checked once, before anything is changed."""
        if not self._finite:
            check_finite(self._model, when=when)
            self._finite = True

    def _untie(self) -> None:
        for module, name, alias, first in self._ties:
            alias.data = first.data
            module._parameters[name] = alias  # noqa: SLF001

    def hide_gradients(self) -> None:
        """Set every ``.grad`` to None, and make parameters that are one memory one object, until all is restored."""
        for module, name, _, first in self._ties:
            module._parameters[name] = first  # noqa: SLF001
        for p in self._flags:
            p.grad = None

    def keep_copies(self, *, keep: bool) -> None:
        """Copy the weights, unless there are copies already; or drop the copies there are."""
        self._parameters.keep_copies(keep=keep)

    def before(self, name: str) -> Tensor:
        """Return the value that a parameter had."""
        return self._parameters.copies[name]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that could be edited at the time of the snapshot."""
        return {name: p for name, p in self._parameters.objects.items() if self._flags[p]}

    def structure_changes(self) -> list[str]:
        """Say which modules, parameters or buffers were added, removed or replaced."""
        problems: list[str] = []
        tied: _Members = {alias: first for _, _, alias, first in self._ties}

        def held_by(members: _Members) -> _Members:
            return {name: tied.get(p, p) for name, p in members.items()}

        for module, (_, (held, buffered, children, *_)) in self._modules.items():
            name = self._names[module]
            if not _same_members(held_by(held), held_by(dict(module._parameters))):  # noqa: SLF001
                problems.append(f"{name} gained, lost or replaced a parameter")
            if not _same_members(children, module._modules):  # noqa: SLF001
                problems.append(f"{name} gained, lost or replaced a child module")
            if set(buffered) != set(dict(module._buffers)):  # noqa: SLF001
                problems.append(f"{name} gained or lost a buffer")
        kinds = self._parameters.kind_changes(parameters(self._model))
        return problems + kinds + self._buffers.kind_changes(_buffers_of(self._model))

    def changed_parameters(self, *, frozen: bool = False) -> list[str]:
        """Return the names of the parameters, or of the ``frozen`` ones, whose bits differ from the snapshot."""
        left_out = self.trainable() if frozen else ()
        return self._parameters.changed(parameters(self._model), left_out)

    def changed_buffers(self) -> list[str]:
        """Return the names of the buffers whose bits differ from the snapshot."""
        return self._buffers.changed(_buffers_of(self._model))

    def restore_surroundings(self, *, buffers: bool = True) -> None:
        """Put back all but the weights: gradients, modes, ``requires_grad``, buffers, hooks and plain attributes."""
        if not buffers:
            self._buffers.adopt(_buffers_of(self._model))
        for module, (training, saved) in self._modules.items():
            _put_back(module, saved, ("_buffers", *_HOOKS))
            module.training = training
            changed = {k: v for k, v in self._attributes[module].items() if vars(module).get(k) is not v}
            vars(module).update(changed)
        for p, flag in self._flags.items():
            p.requires_grad_(flag)
            p.grad = self._grads[p]
            for hooks, known in zip(_hooks_of(p), self._hooks[p], strict=True):
                if hooks is not None and dict(hooks) != known:
                    hooks.clear()
                    hooks.update(known)
        if buffers:
            self._buffers.restore()
        self._untie()

    def restore(self) -> None:
        """Put everything back, bit by bit, structure included."""
        for module, (_, saved) in self._modules.items():
            _put_back(module, saved, _MEMBERS)
        self._parameters.restore()
        with torch.no_grad():
            self.undo_log.undo()
        self.restore_surroundings()


@final
class _Tensors:
    """Named tensors: the objects, their storage, and copies of their values if wanted, else the sums of their bits."""

    def __init__(self, named: dict[str, Any], *, copies: bool = True) -> None:
        self.objects: _Members = dict(named)
        self.storages = {name: t.data for name, t in named.items()}
        self.kinds = {name: _kind(t) for name, t in named.items()}
        self.copies: dict[str, Tensor] = {}
        self._sums: dict[str, int] = {}
        self.keep_copies(keep=copies)

    def keep_copies(self, *, keep: bool) -> None:
        if not keep:
            self._sums = self._sums or {name: bit_sum(t) for name, t in self.objects.items()}
            self.copies = {}
        elif len(self.copies) < len(self.objects):
            self.copies = {name: t.detach().clone() for name, t in self.objects.items()}

    def kind_changes(self, now: dict[str, Any]) -> list[str]:
        return [
            f"{name}: expected {_describe(kind)}, saw {_describe(_kind(now[name]))}"
            for name, kind in self.kinds.items()
            if name in now and _kind(now[name]) != kind
        ]

    def changed(self, now: dict[str, Any], left_out: Container[str] = ()) -> list[str]:
        return [
            name
            for name, kind in self.kinds.items()
            if name not in left_out and (name not in now or _kind(now[name]) != kind or self._differs(name, now[name]))
        ]

    def _differs(self, name: str, now: Tensor) -> bool:
        if name in self.copies:
            return not same_bits(now, self.copies[name])
        return bit_sum(now) != self._sums[name]

    def adopt(self, now: dict[str, Any]) -> None:
        """Write the current values into the old storage of the old objects."""
        values = {name: t.detach().clone() for name, t in now.items() if name in self.objects}
        with torch.no_grad():
            for name, value in values.items():
                self.objects[name].data = self.storages[name]
                self.objects[name].data.copy_(value)

    def restore(self) -> None:
        """Write the old values into the old storage of the old objects."""
        with torch.no_grad():
            for name, tensor in self.objects.items():
                tensor.data = self.storages[name]
                if name in self.copies and not same_bits(local(tensor), local(self.copies[name])):
                    local(tensor).copy_(local(self.copies[name]))


def _hooks_of(p: Tensor) -> tuple[Any, Any]:
    return p._backward_hooks, getattr(p, "_post_accumulate_grad_hooks", None)  # noqa: SLF001 - torch has no public names


def _attributes_of(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that a method, or a ``train()`` of the model's own, may set."""
    return {**plain_attributes(module), **{name: None for name, value in vars(module).items() if value is None}}


def _put_back(module: nn.Module, saved: tuple[_Members, ...], which: tuple[str, ...]) -> None:
    for name, members in zip(_MEMBERS, saved, strict=True):
        held = getattr(module, name)
        if name in which and not _same_members(members, held):
            held.clear()
            held.update(members)


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _describe(kind: tuple[torch.Size, torch.dtype, torch.device]) -> str:
    shape, dtype, device = kind
    return f"shape {tuple(shape)}, {dtype} on {device}"


def _same_members(before: _Members, held: _Members) -> bool:
    now = dict(held)  # a scripted module has read-only objects that are no dictionaries
    return list(before) == list(now) and all(before[key] is now[key] for key in before)
