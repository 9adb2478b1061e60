"""Methods whose edit of a weight depends on that weight and its two importances alone.

Each parameter is edited in pieces that fit in cache: computed, checked, counted, logged and written one by one.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Self, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.distributed.collectives import all_reduce_sum, gather_problems, name_dead_ranks
from unlearnkit.distributed.sharded_tensors import is_first_replica, is_sharded, local
from unlearnkit.importance.importance import Importance
from unlearnkit.models.parameters import (
    all_finite,
    bits,
    changed_positions,
    chunk_size,
    chunks,
    in_memory_order,
    trainable,
    wide,
)
from unlearnkit.models.snapshot import UndoLog
from unlearnkit.unlearning.unlearner import EditCounts, Need, Unlearner, UnlearningInputs
from unlearnkit.utils.errors import ConfigurationError, MismatchError, NonFiniteError, UnlearnKitError, raise_all
from unlearnkit.utils.options import option_values

_Weights = dict[str, nn.Parameter]
Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""θ' from θ, F_f and F_r."""


@final
@attrs.frozen(kw_only=True, eq=False)
class RuleOperands:
    """One parameter and the totals of its importances, which are divided by their numbers of terms piece by piece."""

    theta: Tensor
    forget: Tensor
    reference: Tensor | None = None
    forget_terms: int | None = None
    reference_terms: int | None = None

    @classmethod
    def of(cls, name: str, theta: Tensor, forget: Importance, reference: Importance | None) -> "RuleOperands":
        """Find the importances of a parameter by its name; of a sharded one, this process's shard."""
        found = cls(theta=local(theta), forget=local(forget.totals[name]), forget_terms=forget.terms())
        if reference is None or name not in reference.totals:
            return found
        total = local(reference.totals[name])
        return attrs.evolve(found, reference=total, reference_terms=reference.terms())


@final
class RuleApplier:
    """Applies a rule piece by piece, bit-equal to the rule on the full tensor.

    That holds for operations that are correctly rounded (+ − × ÷, comparisons, `torch.where`). The last bit of exp, log
    and √ may depend on an element's position in its tensor.
    """

    def __init__(self, rule: Rule, *, who: str) -> None:
        self._rule, self._who = rule, who

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
        for t, f, r in chunks(*in_memory_order(theta, forget, reference), limit=chunk_size(theta.device)):
            piece = attrs.evolve(operands, theta=t, forget=f, reference=None if operands.reference is None else r)
            changed += self._apply_to_piece(piece, dtype, undo_log)
        return changed

    def _apply_to_piece(self, piece: RuleOperands, dtype: torch.dtype, undo_log: UndoLog | None) -> int:
        with torch.inference_mode(mode=False), torch.no_grad():  # inference tensors count no versions
            theta = piece.theta.to(dtype, copy=True)
            forget = _mean(piece.forget, piece.forget_terms, like=theta)
            edited = self._edited(theta, forget, _mean(piece.reference, piece.reference_terms, like=theta))
        if edited.dtype != piece.theta.dtype:
            edited = _narrowed(edited, piece.theta)
        positions = changed_positions(piece.theta, edited)
        self._check_finite(piece.theta, edited, positions)
        if undo_log is not None:
            undo_log.write(piece.theta, edited, positions=positions)
        return positions.numel()

    def _edited(self, *arguments: Tensor) -> Tensor:
        theta, versions = arguments[0], [t._version for t in arguments]  # noqa: SLF001 - the cheap way to see an edit
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
        """Raise an error if a finite weight became NaN or infinity; only changed weights are checked."""
        old, new = (t.reshape(-1).index_select(0, positions) for t in (before, after))
        if not all_finite(new) and bool((torch.isfinite(old) & ~torch.isfinite(new)).any()):
            raise NonFiniteError(f"{self._who} made NaN or infinity of finite weights")


@final
class _Undeclared(Tensor):
    """F_r for the rule of a method that does not declare it."""

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise ConfigurationError(
            "rule() uses the reference importance without declaring it: add Need.REFERENCE_IMPORTANCE to the needs"
        )


def _mean(total: Tensor | None, terms: int | None, *, like: Tensor) -> Tensor:
    if total is None:
        return torch.zeros_like(like)
    return (total.clone() if terms is None else total / terms).to(like)


def _narrowed(edited: Tensor, theta: Tensor) -> Tensor:
    # A cast there and back may change the bits of a NaN: what the rule left alone keeps its own.
    return torch.where(bits(edited) == bits(theta.to(edited.dtype)), theta, edited.to(theta.dtype))


class ElementwiseUnlearner(Unlearner):
    """θ' = rule(θ, F_f, F_r), for every weight by itself. Subclass it and write `rule`.

    The edit is one pass over the three arrays, without a copy of the model; a failed one is undone from a log of the
    old values. Importances arrive as means over samples (or as totals, when they are `Importance.unnormalised`).

    Examples:
        >>> import attrs, torch
        >>> @final
        ... @attrs.frozen(kw_only=True)
        ... class Halve(ElementwiseUnlearner):
        ...     name = "halve"
        ...     def rule(self, theta, forget, reference):
        ...         return torch.where(forget > reference, theta / 2, theta)
        >>> ones = torch.ones(2)
        >>> Halve().edit(ones, torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
        tensor([1.0000, 0.5000])
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_IMPORTANCE, Need.REFERENCE_IMPORTANCE})

    @abc.abstractmethod
    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        """Return the edited weights: a pure function, element by element, nothing edited in place.

        It is called for pieces of a parameter, so it must not reduce over all of it: use `prepare`.

        Args:
            theta: Weights, any shape, float32 or float64.
            forget: F_f ≥ 0, same shape, dtype and device.
            reference: F_r ≥ 0, likewise. Using it is an error when ``needs`` does not declare it.

        Returns:
            θ', same shape, dtype and device.
        """

    def prepare(self, forget: Importance, reference: Importance | None) -> Self:
        """Return the object that edits: this one, or ``attrs.evolve(self, …)`` with options derived from importances.

        Override it for a global quantile, say. ``reference`` is None when the method does not need one.
        """
        del forget, reference
        return self

    @final
    def edit(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        """Apply the rule to one tensor: in at least float32, checked, cast back.

        Importances have the shape and the device of θ, and are float32 or float64. Weights that the rule leaves alone
        keep their bits.

        Raises:
            MismatchError: The rule returned another shape, dtype or device, or edited its arguments.
            NonFiniteError: The rule turned finite numbers into NaN or infinity.
        """
        return self.applier().copy(RuleOperands(theta=theta, forget=forget, reference=reference))

    @final
    def applier(self) -> RuleApplier:
        """Return an object that applies the rule to parameters, and checks its results."""
        rule = self.rule if Need.REFERENCE_IMPORTANCE in self.requires() else self._rule_without_reference
        return RuleApplier(rule, who=f"method {self.name!r}: rule()")

    def _rule_without_reference(self, theta: Tensor, forget: Tensor, _: Tensor) -> Tensor:
        return self.rule(theta, forget, _Undeclared())

    @final
    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        """Edit every trainable parameter by name; see `Unlearner.apply`."""
        self._write(trainable(model), inputs, UndoLog())

    @final
    def _edit(self, model: nn.Module, inputs: UnlearningInputs, undo_log: UndoLog) -> EditCounts | None:
        if self._needs_copy():
            return super()._edit(model, inputs, undo_log)
        weights = trainable(model)
        sharded = any(map(is_sharded, weights.values()))
        return (self._write_sharded if sharded else self._write)(weights, inputs, undo_log)

    @final
    def _needs_copy(self) -> bool:
        """Whether a subclass overrides ``apply``; a rule changes nothing that is not in the undo log."""
        return type(self).apply is not ElementwiseUnlearner.apply

    def _write(self, weights: _Weights, inputs: UnlearningInputs, undo_log: UndoLog) -> EditCounts:
        forget, reference, changed = inputs.forget, None, {}
        if Need.REFERENCE_IMPORTANCE in self.requires():
            reference = inputs.reference
        assert forget is not None, "checked by UnlearningInputs.check: FORGET_IMPORTANCE is among the needs"
        ready = self._prepared(forget, reference)
        applier = ready.applier()
        for name, p in weights.items():
            try:
                changed[name] = applier.write(RuleOperands.of(name, p, forget, reference), undo_log)
            except Exception as error:
                error.add_note(f"while {self.name!r} edited {name!r}")
                raise
        given = option_values(self)
        derived = {key: value for key, value in option_values(ready).items() if given.get(key) != value}
        return EditCounts(changed=changed, derived=derived)

    @final
    def _prepared(self, forget: Importance, reference: Importance | None) -> Self:
        try:
            ready: Any = self.prepare(forget, reference)
        except (AttributeError, TypeError) as error:
            if reference is not None or "NoneType" not in str(error):
                raise
            raise ConfigurationError(
                f"method {self.name!r}: prepare() uses the reference importance without declaring it: add "
                f"Need.REFERENCE_IMPORTANCE to the needs: {error}"
            ) from error
        if not isinstance(ready, type(self)):
            raise MismatchError(
                f"method {self.name!r}: prepare() must return an object of its class, as attrs.evolve(self, …) does, "
                f"saw {type(ready).__name__}"
            )
        return ready

    @final
    def _write_sharded(self, weights: _Weights, inputs: UnlearningInputs, undo_log: UndoLog) -> EditCounts:
        """Edit the pieces in this process and count over all processes; an error in one is raised in all."""
        problems, here = [], EditCounts(changed={})
        try:
            here = self._write(weights, inputs, undo_log)
        except Exception as error:  # noqa: BLE001 - the other processes wait, whatever the error is
            problems = [": ".join([type(error).__name__, str(error), *getattr(error, "__notes__", [])])]
        with name_dead_ranks():
            raise_all(
                gather_problems(problems), where="an edit in pieces (the model was put back)", error=UnlearnKitError
            )
            mine = [here.changed[name] if is_first_replica(p) else 0 for name, p in weights.items()]
            device = next(iter(weights.values())).device
            everywhere = dict(zip(weights, all_reduce_sum(mine, device=device), strict=True))
        return attrs.evolve(here, changed=everywhere)

    @final
    def _check_shardable(self, why: str = "it reads all importances before it edits, and no process has them") -> None:
        prepares = type(self).prepare is not ElementwiseUnlearner.prepare
        if self._needs_copy() or (prepares and not self.promises().sharded):
            super()._check_shardable(f"{why}; use a method that does not, with thresholds of your own")
