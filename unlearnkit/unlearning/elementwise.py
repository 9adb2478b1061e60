"""Methods whose edit of a weight depends on that weight and its two importances alone."""

import abc
from typing import ClassVar, Self, final

import attrs
from torch import Tensor, nn

from unlearnkit.distributed.collectives import all_reduce_sum, gather_problems, name_dead_ranks
from unlearnkit.distributed.sharded_tensors import is_first_replica, is_sharded
from unlearnkit.importance.importance import Importance
from unlearnkit.models.parameters import trainable
from unlearnkit.models.snapshot import UndoLog
from unlearnkit.unlearning.apply_rule import RuleApplier, RuleOperands
from unlearnkit.unlearning.unlearner import EditCounts, Need, Unlearner, UnlearningInputs
from unlearnkit.utils.errors import UnlearnKitError, UnsupportedModelError, raise_all
from unlearnkit.utils.options import option_values

_Weights = dict[str, nn.Parameter]


class ElementwiseUnlearner(Unlearner):
    """θ' = rule(θ, F_f, F_r), for every weight by itself. Subclass it and write `rule`.

    The edit is one pass over the three arrays, in pieces, without a copy of the model. An edit that fails is undone
    from a log of the values that it overwrote.

    Importances arrive as means over samples (or as totals, when they are `Importance.unnormalised`).

    Example:
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

        It is called for pieces of a parameter that fit in cache, so it must not look at a whole one: use `prepare`.

        Args:
            theta: Weights, any shape, float32 or float64.
            forget: F_f ≥ 0, same shape, dtype and device.
            reference: F_r ≥ 0, likewise; zeros when the method does not need it.

        Returns:
            θ', same shape, dtype and device.
        """

    def prepare(self, forget: Importance, reference: Importance | None) -> Self:
        """Return the object that edits: this one, or a copy with options derived from all importances.

        Override it for a global quantile, say, and return ``attrs.evolve(self, …)``. ``reference`` is None when the
        method does not need one.
        """
        del forget, reference
        return self

    @final
    def edit(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        """Apply the rule to one tensor: in at least float32, checked, cast back.

        Args:
            theta: Weights, any shape and floating dtype.
            forget: F_f, same shape and device, float32 or float64.
            reference: F_r, likewise.

        Returns:
            θ' in the dtype of ``theta``; weights that the rule leaves alone keep their bits.

        Raises:
            MismatchError: The rule returned another shape, dtype or device, or edited its arguments.
            NonFiniteError: The rule made a NaN or an infinity of finite numbers.
        """
        return self.applier().copy(RuleOperands(theta=theta, forget=forget, reference=reference))

    @final
    def applier(self) -> RuleApplier:
        """Return what applies the rule to one parameter after the other, and checks its results."""
        return RuleApplier(self.rule, who=f"method {self.name!r}: rule()")

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
        """Whether a subclass replaces ``apply``: a rule sees copies of pieces, so the undo log has all that changes."""
        return type(self).apply is not ElementwiseUnlearner.apply

    def _write(self, weights: _Weights, inputs: UnlearningInputs, undo_log: UndoLog) -> EditCounts:
        forget, reference, changed = inputs.forget, inputs.reference, {}
        assert forget is not None, "checked by UnlearningInputs.check: FORGET_IMPORTANCE is among the needs"
        ready = self.prepare(forget, reference)
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
    def _check_shardable(self) -> None:
        if self._needs_copy() or type(self).prepare is not ElementwiseUnlearner.prepare:
            raise UnsupportedModelError(
                f"method {self.name!r}: expected a model that is whole in this process, saw one whose parameters are "
                "sharded (FSDP, DTensor): this method looks at all importances at once before it edits (a percentile, "
                "say), which no process has; use one that does not, with thresholds of your own"
            )
