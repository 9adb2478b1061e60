"""Applies an elementwise rule in pieces, each computed, checked, counted, logged and written while it is in cache."""

from collections.abc import Callable
from typing import final

import attrs
import torch
from torch import Tensor

from unlearnkit.distributed.sharded_tensors import local
from unlearnkit.importance.importance import Importance
from unlearnkit.models.parameters import all_finite, bits, wide
from unlearnkit.models.undo_log import UndoLog, changed_positions
from unlearnkit.utils.chunks import chunk_size, chunks, in_memory_order
from unlearnkit.utils.errors import MismatchError, NonFiniteError

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""θ' from θ, F_f and F_r."""


@final
@attrs.frozen(kw_only=True, eq=False)
class RuleOperands:
    """One parameter and its importances: totals, which are divided by their numbers of terms piece by piece."""

    theta: Tensor
    forget: Tensor
    reference: Tensor | None = None
    forget_terms: int | None = None
    reference_terms: int | None = None

    @classmethod
    def of(cls, name: str, theta: Tensor, forget: Importance, reference: Importance | None) -> "RuleOperands":
        """Find the importances of a parameter by its name; of a sharded one, the piece in this process."""
        found = cls(theta=local(theta), forget=local(forget.totals[name]), forget_terms=forget.terms())
        if reference is None or name not in reference.totals:
            return found
        total = local(reference.totals[name])
        return attrs.evolve(found, reference=total, reference_terms=reference.terms())


@final
class RuleApplier:
    """Applies a rule to one parameter after the other, with the bits that it has on the whole tensor.

    The bits are the same as long as the operations of the rule are element by element and correctly rounded (+ − × ÷,
    comparisons, choices): torch's exp, log or √ may differ in the last bit with the position in the tensor.

    Example:
        >>> halve = RuleApplier(lambda t, f, r: torch.where(f > r, t / 2, t), who="halve")
        >>> halve.count(RuleOperands(theta=torch.ones(2), forget=torch.tensor([0.0, 1.0])))
        1
    """

    def __init__(self, rule: Rule, *, who: str) -> None:
        self._rule, self._who = rule, who
        self._buffers: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    def write(self, operands: RuleOperands, undo_log: UndoLog) -> int:
        """Edit the parameter in place; return how many weights changed."""
        return self._apply(operands, undo_log)

    def count(self, operands: RuleOperands) -> int:
        """Count the weights that `write` would change."""
        return self._apply(operands, None)

    def copy(self, operands: RuleOperands) -> Tensor:
        """Return an edited copy, of the dtype of the parameter."""
        edited = operands.theta.detach().clone()
        self._apply(attrs.evolve(operands, theta=edited), UndoLog())
        return edited

    def _apply(self, operands: RuleOperands, undo_log: UndoLog | None) -> int:
        theta, forget = operands.theta.detach(), operands.forget
        reference = forget if operands.reference is None else operands.reference
        dtype = torch.promote_types(wide(theta.dtype), torch.promote_types(forget.dtype, reference.dtype))
        changed = 0
        for piece, f, r in chunks(*in_memory_order(theta, forget, reference), limit=chunk_size(theta.device)):
            sources = (
                (piece, None),
                (f, operands.forget_terms),
                (r if operands.reference is not None else None, operands.reference_terms),
            )
            with torch.inference_mode(mode=False), torch.no_grad():  # inference tensors count no versions
                edited = self._edited(*(self._argument(n, piece, *source, dtype) for n, source in enumerate(sources)))
            if edited.dtype != piece.dtype:
                edited = _narrowed(edited, piece)
            positions = changed_positions(piece, edited)
            self._check_finite(piece, edited, positions)
            changed += positions.numel()
            if undo_log is not None:
                undo_log.write(piece, edited, positions=positions)
        return changed

    def _argument(
        self, slot: int, like: Tensor, source: Tensor | None, terms: int | None, dtype: torch.dtype
    ) -> Tensor:
        """Fill the buffer of an argument: the mean of a total, or zeros without one."""
        key = (slot, like.device, dtype)
        if key not in self._buffers or self._buffers[key].numel() < like.numel():
            self._buffers[key] = torch.empty(like.numel(), device=like.device, dtype=dtype)
        argument = self._buffers[key][: like.numel()].view(like.shape)
        if source is None:
            return argument.zero_()
        if terms is None:
            return argument.copy_(source)
        if (source.device, source.dtype) == (like.device, dtype):
            return torch.div(source, terms, out=argument)
        return argument.copy_(source / terms)

    def _edited(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        arguments = (theta, forget, reference)
        versions = [t._version for t in arguments]  # noqa: SLF001 - the only cheap way to see an edit in place
        edited = self._rule(*arguments)
        if [t._version for t in arguments] != versions:  # noqa: SLF001
            raise MismatchError(f"{self._who} must not edit its arguments in place: return a new tensor")
        if not isinstance(edited, Tensor):
            raise MismatchError(f"{self._who} must return a tensor, saw {type(edited).__name__}")
        if (edited.shape, edited.dtype, edited.device) != (theta.shape, theta.dtype, theta.device):
            raise MismatchError(
                f"{self._who} must return shape {tuple(theta.shape)}, {theta.dtype} on {theta.device}, saw "
                f"{tuple(edited.shape)}, {edited.dtype} on {edited.device}"
            )
        return edited

    def _check_finite(self, before: Tensor, after: Tensor, positions: Tensor) -> None:
        """Refuse NaN and infinity made of finite numbers; what keeps its bits need not be looked at."""
        old, new = (t.reshape(-1).index_select(0, positions) for t in (before, after))
        if not all_finite(new) and bool((torch.isfinite(old) & ~torch.isfinite(new)).any()):
            raise NonFiniteError(f"{self._who} made NaN or infinity of finite weights")


def _narrowed(edited: Tensor, theta: Tensor) -> Tensor:
    # Converting there and back quietens a signalling NaN: what the rule left alone keeps its own bits.
    return torch.where(bits(edited) == bits(theta.to(edited.dtype)), theta, edited.to(theta.dtype))
