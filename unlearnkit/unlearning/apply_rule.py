"""Applies an elementwise rule in pieces, each computed, checked, counted, logged and written while it is in cache."""

from collections.abc import Callable
from typing import final

import attrs
import torch
from torch import Tensor

from unlearnkit.distributed.sharded_tensors import local
from unlearnkit.importance.importance import Importance
from unlearnkit.models.parameters import all_finite, bits, changed_positions, chunk_size, chunks, in_memory_order, wide
from unlearnkit.models.snapshot import UndoLog
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
        self._buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}

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
        pieces = chunks(*in_memory_order(theta, forget, reference), limit=chunk_size(theta.device))
        return sum(
            self._apply_to_piece(
                attrs.evolve(operands, theta=t, forget=f, reference=None if operands.reference is None else r),
                dtype,
                undo_log,
            )
            for t, f, r in pieces
        )

    def _apply_to_piece(self, piece: RuleOperands, dtype: torch.dtype, undo_log: UndoLog | None) -> int:
        with torch.inference_mode(mode=False), torch.no_grad():  # inference tensors count no versions
            theta, forget, reference = self._arguments(piece.theta, dtype)
            theta.copy_(piece.theta)
            _mean(piece.forget, piece.forget_terms, out=forget)
            if piece.reference is None:
                reference.zero_()
            else:
                _mean(piece.reference, piece.reference_terms, out=reference)
            edited = self._edited(theta, forget, reference)
        if edited.dtype != piece.theta.dtype:
            edited = _narrowed(edited, piece.theta)
        positions = changed_positions(piece.theta, edited)
        self._check_finite(piece.theta, edited, positions)
        if undo_log is not None:
            undo_log.write(piece.theta, edited, positions=positions)
        return positions.numel()

    def _arguments(self, piece: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return buffers for the arguments of the rule, of the shape of a piece."""
        key, size = (piece.device, dtype), piece.numel()
        if key not in self._buffers or self._buffers[key].shape[1] < size:
            self._buffers.pop(key, None)  # not beside the larger one
            self._buffers[key] = torch.empty(3, size, device=piece.device, dtype=dtype)
        return self._buffers[key][:, :size].view(3, *piece.shape).unbind()

    def _edited(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        version = theta._version  # noqa: SLF001 - the only cheap way to see an edit in place; all three share it
        edited = self._rule(theta, forget, reference)
        if theta._version != version:  # noqa: SLF001
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


def _mean(total: Tensor, terms: int | None, *, out: Tensor) -> None:
    if terms is not None and (total.device, total.dtype) == (out.device, out.dtype):
        torch.div(total, terms, out=out)
    else:
        out.copy_(total if terms is None else total / terms)


def _narrowed(edited: Tensor, theta: Tensor) -> Tensor:
    # Converting there and back quietens a signalling NaN: what the rule left alone keeps its own bits.
    return torch.where(bits(edited) == bits(theta.to(edited.dtype)), theta, edited.to(theta.dtype))
