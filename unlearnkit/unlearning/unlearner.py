"""The contract of every method that makes a model forget."""

import abc
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, final

import attrs
from torch import nn

from unlearnkit.distributed.sharded_tensors import settle
from unlearnkit.importance.importance import Importance
from unlearnkit.models.parameters import check_finite, count_changed, digest, trainable
from unlearnkit.models.snapshot import ModelSnapshot
from unlearnkit.unlearning.inputs import Need, UnlearningInputs
from unlearnkit.unlearning.report import Report, ReportedImportance, TensorChange
from unlearnkit.utils.errors import BudgetError, MismatchError, UnlearnKitWarning, UnsupportedModelError, raise_all
from unlearnkit.utils.options import option_values

NAME = re.compile(r"[a-z][a-z0-9-]*")
"""What a method, an estimator or a metric may be called."""


def _as_it_is(report: Report) -> Report:
    return report


def _names(names: Iterable[str]) -> frozenset[str]:
    return frozenset(names)


@final
@attrs.frozen(kw_only=True)
class UnlearnerTraits:
    """What a method promises; the laws that apply to it follow from these. The defaults promise the least.

    The promises below ``edits_buffers`` concern the rule of an elementwise method: θ' from θ, F_f and F_r.

    Attributes:
        deterministic: The same input gives the same bits on one CPU.
        edits_buffers: No promise but a permission: the values of buffers, such as BatchNorm's running statistics, may
            change; the report names those that did. Without it every buffer keeps its bits.
        local: A weight with F_f = 0 stays bit-identical, −0 and NaN included.
        non_amplifying: |θ'| ≤ |θ|.
        sign_preserving: θ' is 0 or has the sign of θ.
        odd: The edit of −θ is minus the edit of θ.
        scale_free: F_f and F_r times the same power of two give the same edit.
        idempotent: A second edit with the same importances changes nothing.
        monotone: Names of the options that, when raised, never make any |θ'| smaller.
    """

    deterministic: bool = True
    edits_buffers: bool = False
    local: bool = False
    non_amplifying: bool = False
    sign_preserving: bool = False
    odd: bool = False
    scale_free: bool = False
    idempotent: bool = False
    monotone: frozenset[str] = attrs.field(default=frozenset(), converter=_names)


@final
@attrs.frozen(kw_only=True)
class Counted:
    """What is known of an edit that was counted, and checked, on the way."""

    changed: Mapping[str, int]
    derived: Mapping[str, Any] = attrs.field(factory=dict)


class Unlearner(abc.ABC):
    """Edits a model in place so that it forgets. Subclass it and write `apply`.

    The public method checks the inputs, the model before and the model after, counts what changed, and rolls back
    bit by bit when anything goes wrong. A method whose edit of a weight depends on that weight and its importances
    alone is an `ElementwiseUnlearner`, which is shorter still.

    Example:
        >>> class Halve(Unlearner):
        ...     name = "halve"
        ...     needs = frozenset()
        ...     def apply(self, model, inputs):
        ...         for p in trainable(model).values():
        ...             p.data.mul_(0.5)
        >>> model = nn.Linear(2, 1, bias=False)
        >>> Halve().unlearn(model, UnlearningInputs()).changed
        2
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits()

    @abc.abstractmethod
    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        """Edit the trainable parameters of the model in place.

        Args:
            model: In the mode it was found in, every ``.grad`` None. Frozen parameters and structure must stay as they
                are, and so must buffers unless the method has the trait ``edits_buffers``.
            inputs: Holds at least what ``needs`` declares.
        """

    def promises(self) -> UnlearnerTraits:
        """Say what this object promises with its own options; override it when an option takes a promise back.

        Returns:
            ``traits``, or a copy of them made by ``attrs.evolve``.
        """
        return self.traits

    def remarks(self, inputs: UnlearningInputs) -> tuple[str, ...]:
        """Say what a user should know before the edit; override it to warn.

        Args:
            inputs: As for `apply`.

        Returns:
            Sentences: each is issued as a warning and kept in the report.
        """
        del inputs
        return ()

    @final
    def unlearn(
        self,
        model: nn.Module,
        inputs: UnlearningInputs,
        *,
        accept: Callable[[Report], Report] = _as_it_is,
        snapshot: ModelSnapshot | None = None,
    ) -> Report:
        """Edit the model in place, whole or not at all.

        A model that is sharded over processes is edited where its pieces lie, by all processes together: each must call
        this, with importances that are sharded as the model is. ``accept`` is then called on each.

        Args:
            model: Its trainable parameters are edited; everything else stays.
            inputs: Must hold what ``needs`` declares; its importances must be this very model's.
            accept: Sees the report and the edited model before the edit is final, and returns the report; an exception
                there, Ctrl-C included, rolls the edit back.
            snapshot: A snapshot of this very model with its weights finite, where there is one already: `Pipeline` has
                it, and the model is not checked, hashed and copied again.

        Returns:
            What was changed.

        Raises:
            MismatchError: Importances that are not this model's, or a method that changed what it must not.
            NonFiniteError: NaN or infinity before or after the edit.
            BudgetError: More weights were changed than allowed.
            ConfigurationError: UnlearningInputs is missing.
            UnsupportedModelError: The model is sharded, and the method is not one that can edit pieces.
        """
        if settle(model):
            self._check_shardable()
        if snapshot is None:
            check_finite(model, when=f"before {self.name!r} edits them")
        else:
            snapshot.check_current()
        before = digest(model) if snapshot is None else snapshot.digest
        # Each against the model before one against the other: a stale one is better called stale than different.
        for importance in (inputs.forget, inputs.reference):
            if importance is not None:
                _check_importance(importance, model, before)
        inputs.check(self.needs, method=self.name)
        remarks = self.remarks(inputs)
        for remark in remarks:
            warnings.warn(f"{self.name}: {remark}", UnlearnKitWarning, stacklevel=2)
        guard, start = snapshot or self._guard(model), time.perf_counter()
        guard.clear_gradients()
        try:
            counted = self._edit(model, inputs, guard)
            seconds = time.perf_counter() - start
            edits_buffers = self.promises().edits_buffers
            self._check_after(guard, edits_buffers=edits_buffers)
            if counted is None:
                check_finite(model, when=f"after {self.name!r} edited them (the model was put back)")
            changes, buffers_changed = _changes(guard, counted), tuple(guard.changed_buffers())
            _check_budget(changes, inputs.max_fraction, method=self.name)
            guard.restore_surroundings(buffers=not edits_buffers)
            return accept(
                Report(
                    method=self.name,
                    options=option_values(self),
                    derived=counted.derived if counted else {},
                    tensors=changes,
                    buffers_changed=buffers_changed,
                    evidence=tuple(_evidenced(i) for i in (inputs.forget, inputs.reference) if i is not None),
                    remarks=remarks,
                    seconds={"edit": seconds},
                    model_before=before,
                    model_after=digest(model),
                )
            )
        except BaseException:
            guard.restore()
            raise

    def _check_after(self, guard: ModelSnapshot, *, edits_buffers: bool) -> None:
        who = f"method {self.name!r} ({type(self).__module__}.{type(self).__qualname__}) broke the contract"
        problems = guard.structure_changes()
        raise_all(problems, where=f"{who} (the model was put back)")
        allowed = guard.trainable()
        problems += [f"{n}: a frozen parameter was edited" for n in guard.changed_parameters() if n not in allowed]
        problems += [f"{n}: a buffer was edited" for n in guard.changed_buffers() if not edits_buffers]
        raise_all(problems, where=f"{who} (the model was put back)")

    def _check_shardable(self) -> None:
        raise UnsupportedModelError(
            f"method {self.name!r}: expected a model that is whole in this process, saw one whose parameters are "
            "sharded (FSDP, DTensor): only methods that edit weight by weight take one"
        )

    def _guard(self, model: nn.Module) -> ModelSnapshot:
        return ModelSnapshot(model)

    def _edit(self, model: nn.Module, inputs: UnlearningInputs, guard: ModelSnapshot) -> Counted | None:
        """Edit the model; return what was counted, when it was counted and checked on the way."""
        del guard
        self.apply(model, inputs)
        return None


def _check_importance(importance: Importance, model: nn.Module, model_digest: str) -> None:
    where = f"the {importance.role.value} importance does not fit {type(model).__name__}"
    raise_all(importance.name_problems(trainable(model), shapes_only=True), where=where)
    if importance.fingerprint.model not in {"", model_digest}:
        raise MismatchError(
            f"{where}: it was measured on the weights {importance.fingerprint.model}, saw {model_digest}: "
            "the model was edited or trained since; estimate again"
        )
    importance.check_values(who=f"the {importance.role.value} importance")


def _changes(guard: ModelSnapshot, counted: Counted | None) -> tuple[TensorChange, ...]:
    return tuple(
        TensorChange(
            name=name,
            size=p.numel(),
            changed=count_changed(guard.before(name), p) if counted is None else counted.changed[name],
        )
        for name, p in guard.trainable().items()
    )


def _check_budget(changes: tuple[TensorChange, ...], budget: float | None, *, method: str) -> None:
    changed, size = sum(t.changed for t in changes), sum(t.size for t in changes)
    if budget is not None and changed > budget * size:
        raise BudgetError(
            f"method {method!r}: expected at most {budget:.3g} of the weights to change, saw {changed} of {size} "
            f"({changed / size:.3g}); the model was put back: choose weaker options, or raise max_fraction"
        )


def _evidenced(importance: Importance) -> ReportedImportance:
    return ReportedImportance(
        role=importance.role.value,
        count=importance.count,
        samples=importance.samples,
        batches=importance.trail.describe(),
        order=importance.trail.order,
        fingerprint=importance.fingerprint,
        relative_error=importance.relative_error,
    )


def describe(owner: Any) -> str:
    """Return the first line of an object's or a class's docstring."""
    kind = owner if isinstance(owner, type) else type(owner)
    return (kind.__doc__ or "").strip().partition("\n")[0]
