"""One pass over θ, F_f and F_r: rule, checks, comparison and write, piece by piece while each piece is in cache."""

from collections.abc import Iterator, Sequence
from typing import final

import attrs
import torch
from torch import Tensor

from unlearnkit.models.parameters import all_finite, bits, count_changed, wide
from unlearnkit.models.undo_log import UndoLog
from unlearnkit.unlearning.fused.run import Fused, Rule
from unlearnkit.unlearning.operands import Averaged, RuleOperands
from unlearnkit.utils.chunks import chunk_size, chunks
from unlearnkit.utils.errors import MismatchError, NonFiniteError


@final
@attrs.frozen(kw_only=True, eq=False)
class Sweep:
    """Applies a rule to one parameter at a time; nothing of a parameter's size is made.

    Compiled code does it in one pass where it can; torch does the rest piece by piece, with the same bits.

    The bits are those of the rule on the whole tensor, as long as the rule is element by element and made of operations
    that are rounded correctly (+ − × ÷, comparisons, choices): torch's exp, log or √ of a number may differ in its last
    bit with the place of the number in its tensor.

    Example:
        >>> halve = Sweep(rule=lambda t, f, r: torch.where(f > r, t / 2, t), who="halve")
        >>> weights, zeros = torch.ones(2), Averaged(total=torch.zeros(2))
        >>> halve.count(weights, Averaged(total=torch.tensor([0.0, 1.0])), zeros)
        1
    """

    rule: Rule
    who: str
    fused: Fused | None = None
    keeper: "Sweep | None" = None

    def write(self, theta: Tensor, forget: Averaged, reference: Averaged | None, *, journal: UndoLog) -> int:
        """Edit a parameter in place."""
        [changed] = self.at_once([RuleOperands(theta, forget, reference)], journal=journal)
        return self.by_torch(RuleOperands(theta, forget, reference), journal=journal) if changed is None else changed

    def count(self, theta: Tensor, forget: Averaged, reference: Averaged | None) -> int:
        """Count the weights that `write` would change; arguments and result as there."""
        [changed] = self.at_once([RuleOperands(theta, forget, reference)])
        return self.by_torch(RuleOperands(theta, forget, reference)) if changed is None else changed

    def at_once(self, trios: Sequence[RuleOperands], *, journal: UndoLog | None = None) -> list[int | None]:
        """Edit many parameters as far as compiled code can."""
        if self.fused is None:
            return [None] * len(trios)
        return self.fused.run(trios, plainly=self._plainly, journal=journal, write=journal is not None)

    def by_torch(self, trio: RuleOperands, *, journal: UndoLog | None = None) -> int:
        """Edit a parameter piece by piece; arguments as in `at_once`."""
        return sum(self._keep(piece, edited, journal) for piece, edited in self._pieces(trio))

    def _keep(self, theta: Tensor, edited: Tensor, journal: UndoLog | None) -> int:
        if self.keeper is not None:
            [changed] = self.keeper.at_once([RuleOperands(theta, Averaged(total=edited), None)], journal=journal)
            if changed is not None:
                return changed
        result = self._finite(theta, edited)
        return count_changed(theta, result) if journal is None else journal.write(theta, result)

    def copy(self, theta: Tensor, forget: Averaged, reference: Averaged | None) -> Tensor:
        """Return an edited copy, of the dtype of ``theta``; arguments as in `write`."""
        if self.fused is not None:
            whole = theta.detach().clone()
            if self.fused.run([RuleOperands(whole, forget, reference)], plainly=self._plainly) != [None]:
                return whole
        return self._plainly(theta, forget, reference)

    def _plainly(self, theta: Tensor, forget: Averaged, reference: Averaged | None) -> Tensor:
        whole = theta.detach().clone()
        places = chunks(theta.detach(), whole, limit=self._limit(theta))
        for (_, target), (piece, edited) in zip(
            places, self._pieces(RuleOperands(theta, forget, reference)), strict=True
        ):
            target.copy_(self._finite(piece, edited))
        return whole

    def _pieces(self, trio: RuleOperands) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield views of the weights, and what the rule makes of them: in the dtype that it computes in."""
        theta, forget, reference = trio.theta, trio.forget, trio.reference
        second = forget.total if reference is None else reference.total
        dtype = torch.promote_types(wide(theta.dtype), torch.promote_types(forget.total.dtype, second.dtype))
        parts = chunks(theta.detach(), forget.total, second, limit=self._limit(theta))
        for piece, forget_part, second_part in parts:
            # Not in inference mode, which counts no versions.
            with torch.inference_mode(mode=False), torch.no_grad():
                f = forget.piece(forget_part, theta.device, dtype)
                r = torch.zeros_like(f) if reference is None else reference.piece(second_part, theta.device, dtype)
                edited = self._edited(piece, f, r)
            yield piece, edited

    def _limit(self, theta: Tensor) -> int:
        # A call of compiled code costs as much as several operations of torch: with it, larger pieces are faster.
        return chunk_size(theta.device) * (2 if self.keeper is not None and theta.is_cpu else 1)

    def _edited(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        arguments = (theta.to(forget.dtype, copy=True), forget, reference)
        versions = [t._version for t in arguments]  # noqa: SLF001 - the only cheap way to see an edit in place
        edited = self.rule(*arguments)
        if [t._version for t in arguments] != versions:  # noqa: SLF001
            raise MismatchError(f"{self.who} must not edit its arguments in place: return a new tensor")
        self._check_kind(edited, arguments[0])
        return edited

    def _finite(self, theta: Tensor, edited: Tensor) -> Tensor:
        """Return what is to be written: in the dtype of the weights, and finite where they are."""
        result = edited if edited.dtype == theta.dtype else _narrowed(edited, theta)
        if not all_finite(result) and bool((torch.isfinite(theta) & ~torch.isfinite(result)).any()):
            raise NonFiniteError(f"{self.who} made NaN or infinity of finite weights")
        return result

    def _check_kind(self, edited: object, theta: Tensor) -> None:
        if not isinstance(edited, Tensor):
            raise MismatchError(f"{self.who} must return a tensor, saw {type(edited).__name__}")
        if (edited.shape, edited.dtype, edited.device) != (theta.shape, theta.dtype, theta.device):
            raise MismatchError(
                f"{self.who} must return shape {tuple(theta.shape)}, {theta.dtype} on {theta.device}, saw "
                f"{tuple(edited.shape)}, {edited.dtype} on {edited.device}"
            )


def keeper(who: str) -> Sweep:
    """Return what writes the results of a rule that torch has computed."""
    return Sweep(rule=_given, who=who, fused=Fused(_given, who=f"what keeps the results of {who}"))


def _given(theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
    del theta, reference
    return forget


def _narrowed(edited: Tensor, theta: Tensor) -> Tensor:
    # The way there and back quietens a signalling NaN: what the rule left alone keeps its own bits.
    return torch.where(bits(edited) == bits(theta.to(edited.dtype)), theta, edited.to(theta.dtype))
