"""`Unlearner`, the base class of every unlearning method, and `UnlearningInputs`, the inputs of an edit."""

import abc
import enum
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, check_batches, joined, lost_samples
from unlearnkit.distributed.sharded_tensors import reshard
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import Role
from unlearnkit.models.objective import CrossEntropy, Objective, check_objective
from unlearnkit.models.parameters import check_editable, check_finite, count_changed, digest, trainable
from unlearnkit.models.snapshot import ModelSnapshot, UndoLog
from unlearnkit.models.training import trains_batch_norm
from unlearnkit.unlearning.report import Report, ReportedImportance, TensorChange
from unlearnkit.utils.errors import (
    BudgetError,
    ConfigurationError,
    MismatchError,
    UnlearnKitWarning,
    UnsupportedModelError,
    raise_all,
)
from unlearnkit.utils.global_state import restored_globals
from unlearnkit.utils.options import NAME, class_fault, name_set, object_fault, option_values, refuse
from unlearnkit.utils.progress import Progress, length, silent

T = TypeVar("T")


class Need(enum.Enum):
    """What a method must be given; the value is the field of `UnlearningInputs` that holds it."""

    FORGET_IMPORTANCE = "forget"
    REFERENCE_IMPORTANCE = "reference"
    FORGET_DATA = "forget_data"
    RETAIN_DATA = "retain_data"
    MODEL_FACTORY = "model_factory"


def check_fraction(owner: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
    """Refuse a budget that is not a fraction; an attrs validator."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1):
        raise ConfigurationError(f"{type(owner).__name__}.{field.name}: expected None or 0 to 1, saw {value!r}")


_DATA = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})


@final
@attrs.define(eq=False)
class _Steps:
    """What the steps of one edit have done so far."""

    reports: list[Report] = attrs.field(factory=list)
    passes: int = 0


@final
@attrs.frozen(kw_only=True, eq=False)
class UnlearningInputs:
    """The inputs of an edit. Only those that the method declares in ``needs`` must be there.

    A method that reads one of the others gets a `ConfigurationError` that names the missing `Need`.

    Attributes:
        seed: For methods that draw numbers.
        max_fraction: The largest fraction of weights that the edit may change; beyond it, it is rolled back.
        progress: Shows a bar for long stages.
        after_pass: Called by a method that trains, with the model and the number of passes over data so far; an
            exception in it rolls the edit back.
    """

    _forget: Importance | None = None
    _reference: Importance | None = None
    _forget_data: Iterable[Any] | None = None
    _retain_data: Iterable[Any] | None = None
    _model_factory: Callable[[], nn.Module] | None = None
    objective: Objective = attrs.field(factory=CrossEntropy, converter=check_objective)
    seed: int = 0
    max_fraction: float | None = attrs.field(default=None, validator=check_fraction)
    progress: Progress = silent
    after_pass: Callable[[nn.Module, int], None] | None = None
    _reader: "Unlearner | None" = None  # the method that reads these inputs, while it does
    _steps: _Steps = attrs.field(factory=_Steps)

    @property
    def forget(self) -> Importance | None:
        """Importance for the forget set D_f."""
        return self._declared(Need.FORGET_IMPORTANCE, self._forget)

    @property
    def reference(self) -> Importance | None:
        """Importance for the full set D (the paper) or the retain set D_r (the notebook); its role says which."""
        return self._declared(Need.REFERENCE_IMPORTANCE, self._reference)

    @property
    def forget_data(self) -> Iterable[Any] | None:
        """Batches of D_f that can be iterated more than once."""
        return self._declared(Need.FORGET_DATA, self._forget_data)

    @property
    def retain_data(self) -> Iterable[Any] | None:
        """Batches of D_r that can be iterated more than once."""
        return self._declared(Need.RETAIN_DATA, self._retain_data)

    @property
    def model_factory(self) -> Callable[[], nn.Module] | None:
        """Makes a fresh, untrained model of the same kind."""
        return self._declared(Need.MODEL_FACTORY, self._model_factory)

    def importances(self) -> tuple[Importance, ...]:
        """Return the importances that are there, for whatever method."""
        return tuple(one for one in (self._forget, self._reference) if one is not None)

    def edit_by(self, method: "Unlearner", model: nn.Module) -> None:
        """Edit the model by another method, as one step of an edit; its report becomes a part of that of the edit.

        Call it in `Unlearner.apply`. The method must need nothing that the one that calls it does not; see
        `Unlearner.requires`. Importances are of the model before the edit, so only the first step is given any.
        """
        for need in method.requires():
            self._declared(need, None)
        steps, first = self._steps, not self._steps.reports

        def counted(model: nn.Module, _: int) -> None:
            steps.passes += 1
            if self.after_pass is not None:
                self.after_pass(model, steps.passes)

        inputs = attrs.evolve(
            self,
            forget=self._forget if first else None,
            reference=self._reference if first else None,
            max_fraction=None,
            after_pass=counted,
            reader=None,
        )
        steps.reports.append(method.unlearn(model, inputs))

    def read_by(self, method: "Unlearner") -> "UnlearningInputs":
        """Return the inputs that a method is given: those that it declares; reading another one is an error."""
        undeclared: dict[str, Any] = {need.value: None for need in Need if need not in method.requires()}
        return attrs.evolve(self, reader=method, **undeclared)

    def _declared(self, need: Need, value: T) -> T:
        if self._reader is not None and need not in self._reader.requires():
            raise ConfigurationError(
                f"method {self._reader.name!r} reads inputs.{need.value} without declaring it: add Need.{need.name} to "
                f"the needs of {type(self._reader).__qualname__}"
            )
        return value

    def mean_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean of the objective's losses of a batch, a scalar tensor."""
        return self.objective.losses(model, batch).mean()

    def mean_losses(self, model: nn.Module, batches: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return the mean loss of each batch, of one forward pass over all of them where BatchNorm is in train mode.

        A forget batch alone, of one class, say, would be normalised by its own statistics: its loss would say little of
        the model in use, and the running statistics would become those of the forget set.

        Raises:
            MismatchError: BatchNorm is in train mode, and the batches cannot be joined.
        """
        if not trains_batch_norm(model):
            return tuple(self.mean_loss(model, batch) for batch in batches)
        sizes = [batch_size(batch) for batch in batches]
        try:
            together = joined(batches)
        except MismatchError as error:
            raise MismatchError(
                f"{error}: BatchNorm in train mode has to see the batches together; pad the samples to one size, or "
                'choose mode="eval"'
            ) from error
        return tuple(losses.mean() for losses in torch.split(self.objective.losses(model, together), sizes))

    def check(self, needs: Iterable[Need], *, method: str) -> None:
        """Refuse inputs that lack what a method needs, or whose importances are of different kinds."""
        missing = [
            f"expected {need.value} (the method declares {need.name}), saw None"
            for need in sorted(needs, key=lambda need: need.name)
            if getattr(self, need.value) is None
        ]
        raise_all(missing, where=f"inputs for {method!r}", error=ConfigurationError)
        for need in _DATA & frozenset(needs):
            batches = getattr(self, need.value)
            check_batches(batches, what=need.value)
            if length(batches) == 0:
                raise ConfigurationError(f"{need.value}: expected at least one batch, saw none")
        lost = lost_samples(self.forget_data) if Need.FORGET_DATA in needs else ""
        if lost:
            raise ConfigurationError(f"forget_data: expected a loader that reads each sample once: {lost}")
        if self._forget is not None and self._reference is not None:
            problems = self._forget.kind_problems(self._reference)
            raise_all(problems, where="the forget and the reference importance are of different kinds")
            parts = (self._forget.samples, self._reference.samples)
            if self._reference.role is Role.FULL and 0 < parts[1] < parts[0]:
                raise ConfigurationError(
                    f"expected a full set that holds the forget set of {parts[0]} samples, saw {parts[1]} samples: for "
                    'the retain set say reference_role="retain"'
                )


def _scenario_names(_: Any, __: Any, names: frozenset[str]) -> None:
    wrong = sorted(name for name in names if not NAME.fullmatch(name))
    if wrong:
        raise ConfigurationError(
            f"UnlearnerTraits.forgets: expected names of scenarios, such as 'full-class' and 'sub-class', saw {wrong}"
        )


@final
@attrs.frozen(kw_only=True)
class UnlearnerTraits:
    """What a method promises; the laws that apply to it follow from these. The defaults promise the least.

    All after ``edits_buffers`` concern the rule of an elementwise method: θ' from θ, F_f and F_r.

    Attributes:
        forgets: Scenarios (``"full-class"``, ``"sub-class"``, ``"random"``, ``"corrupted"``) in which ``unlearnkit
            recommend`` tries it: where it changes what the features hold, not the outputs alone.
        deterministic: The same input gives the same bits on one CPU.
        sharded: `ElementwiseUnlearner.prepare`, where it is overridden, needs no importance of other processes.
        edits_buffers: Buffers, such as BatchNorm's running statistics, may change; the report names those that did.
        local: A weight with F_f = 0 stays bit-identical, −0 and NaN included.
        non_amplifying: |θ'| ≤ |θ|.
        sign_preserving: θ' is 0 or has the sign of θ.
        odd: The edit of −θ is minus the edit of θ.
        scale_free: F_f and F_r times the same power of two give the same edit.
        idempotent: A second edit with the same importances changes nothing.
        monotone: Names of the options that, when raised, never make any |θ'| smaller.
    """

    forgets: frozenset[str] = attrs.field(default=frozenset(), converter=name_set, validator=_scenario_names)
    deterministic: bool = True
    sharded: bool = False
    edits_buffers: bool = False
    local: bool = False
    non_amplifying: bool = False
    sign_preserving: bool = False
    odd: bool = False
    scale_free: bool = False
    idempotent: bool = False
    monotone: frozenset[str] = attrs.field(default=frozenset(), converter=name_set)


@final
@attrs.frozen(kw_only=True)
class EditCounts:
    """Changed weights by parameter, and options derived from the importances."""

    changed: Mapping[str, int]
    derived: Mapping[str, Any] = attrs.field(factory=dict)


class Unlearner(abc.ABC):
    """Edits a model in place so that it forgets. Subclass it and write `apply`.

    `unlearn` checks the inputs and the model before and after, counts what changed, and restores the model bit by bit
    when anything goes wrong. A method whose edit of a weight depends on that weight and its importances alone is an
    `ElementwiseUnlearner`, which is shorter still.

    Examples:
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
            inputs: Holds what ``needs`` declares; anything else must not be read.
        """

    def requires(self) -> frozenset[Need]:
        """Return ``needs``; override it where the options decide what is needed, as the steps of a sequence do."""
        return self.needs

    def promises(self) -> UnlearnerTraits:
        """Return ``traits``; override it to return a copy (``attrs.evolve``) when an option takes a promise back."""
        return self.traits

    def remarks(self, inputs: UnlearningInputs) -> tuple[str, ...]:
        """Return sentences, each issued as a warning before the edit and kept in the report; override it to warn."""
        del inputs
        return ()

    def remarks_if_unchanged(self, inputs: UnlearningInputs) -> tuple[str, ...]:
        """Return further sentences for the report of an edit that changed no weight; override it to say what would.

        It is not called for sharded models.
        """
        del inputs
        return ()

    @final
    def unlearn(
        self,
        model: nn.Module,
        inputs: UnlearningInputs,
        *,
        accept: Callable[[Report], Report] | None = None,
        snapshot: ModelSnapshot | None = None,
    ) -> Report:
        """Edit the model in place: completely, or not at all.

        For a sharded model all processes must call this, with importances that are sharded as the model is; each edits
        its own shards and calls ``accept``.

        ``accept`` sees the report and the edited model before the edit is final, and returns the report; an exception
        there, Ctrl-C included, rolls the edit back. A ``snapshot`` of the model as it is now spares the computation of
        its digest.

        Raises:
            MismatchError: Importances that are not this model's, or a method that changed what it must not.
            NonFiniteError: NaN or infinity before or after the edit.
            BudgetError: More weights were changed than ``inputs.max_fraction`` allows.
            ConfigurationError: One of the inputs that the method needs is missing, it reads one that it does not
                declare, or its class has no valid name or needs, or options that would not be recorded; or no weight is
                trainable.
            UnsupportedModelError: The model is sharded, and the method cannot edit shards. Weights are complex, or have
                no values yet.
        """
        refuse(method_fault(self))
        sharded = reshard(model)
        if sharded:
            self._check_shardable()
        check_editable(model)
        snapshot = snapshot or ModelSnapshot(model, copies=False)
        try:
            with restored_globals():  # inside, so that an interrupt there rolls back too
                snapshot.hide_gradients()
                snapshot.check_finite(when=f"before {self.name!r} edits them")
                before = snapshot.digest
                remarks = self._check_inputs(model, inputs, before)
                snapshot.keep_copies(keep=self._needs_copy())
                options, declared = option_values(self), inputs.read_by(self)
                start = time.perf_counter()
                steps = _Steps()
                counts = self._edit(model, attrs.evolve(declared, steps=steps), snapshot.undo_log)
                seconds = time.perf_counter() - start
                buffers_changed = self._check_after(model, snapshot, counts, options)
                changes = _changes(snapshot, counts)
                if not sharded and not any(t.changed for t in changes):
                    remarks += self._sentences("remarks_if_unchanged", self.remarks_if_unchanged(declared))
                remarks += tuple(f"{step.method}: {remark}" for step in steps.reports for remark in step.remarks)
                _check_budget(changes, inputs.max_fraction, method=self.name)
                snapshot.restore_surroundings(buffers=not self.promises().edits_buffers)
                report = Report(
                    method=self.name,
                    options=options,
                    derived=counts.derived if counts else {},
                    tensors=changes,
                    buffers_changed=buffers_changed,
                    evidence=tuple(map(_reported, inputs.importances())),
                    steps=tuple(steps.reports),
                    remarks=remarks,
                    seconds={"edit": seconds},
                    model_before=before,
                    model_after=digest(model),
                )
                return accepted_report(report, accept)
        except BaseException:
            snapshot.restore()
            raise

    def _check_inputs(self, model: nn.Module, inputs: UnlearningInputs, model_digest: str) -> tuple[str, ...]:
        """Check the inputs; issue the remarks as warnings and return them."""
        # Each against the model first: for an importance of an older model, that error says more.
        for importance in inputs.importances():
            _check_importance(importance, model, model_digest)
        inputs.check(self.requires(), method=self.name)
        remarks = self._sentences("remarks", self.remarks(inputs.read_by(self)))
        for remark in remarks:
            warnings.warn(f"{self.name}: {remark}", UnlearnKitWarning, stacklevel=3)
        return remarks

    def _sentences(self, function: str, returned: Any) -> tuple[str, ...]:
        """Check what one of the methods for remarks returned."""
        if isinstance(returned, tuple | list) and all(isinstance(one, str) for one in returned):
            return tuple(returned)
        raise MismatchError(f"method {self.name!r}: {function}() must return a tuple of sentences, saw {returned!r}")

    def _check_after(
        self, model: nn.Module, snapshot: ModelSnapshot, counts: EditCounts | None, options: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Raise an error for changes that are not allowed; return the names of the buffers that changed."""
        who = f"method {self.name!r} ({type(self).__module__}.{type(self).__qualname__}) broke the contract"
        raise_all(snapshot.structure_changes(), where=f"{who} (the model was put back)")
        problems = [f"{n}: a frozen parameter was edited" for n in snapshot.changed_parameters(frozen=True)]
        values = option_values(self).items()
        problems += [f"{n}: an option was changed" for n, v in values if v is not options[n] and v != options[n]]
        buffers_changed = tuple(snapshot.changed_buffers())
        if not self.promises().edits_buffers:
            advice = "keep the model in eval mode, or declare the trait edits_buffers"
            problems += [f"{n}: a buffer was edited: {advice}" for n in buffers_changed]
        raise_all(problems, where=f"{who} (the model was put back)")
        if counts is None:
            when = f"after {self.name!r} edited them (the model was put back)"
            check_finite(model, when=when, buffers_too=buffers_changed)
        return buffers_changed

    def _check_shardable(self, why: str = "only methods that edit weight by weight take one") -> None:
        raise UnsupportedModelError(
            f"method {self.name!r}: expected a model that is not sharded, saw sharded parameters (FSDP, DTensor): {why}"
        )

    def _needs_copy(self) -> bool:
        """Whether only a copy of the weights can undo the edit."""
        return True

    def _edit(self, model: nn.Module, inputs: UnlearningInputs, undo_log: UndoLog) -> EditCounts | None:
        """Edit the model; return what was counted, when it was counted and checked on the way."""
        del undo_log
        returned: Any = self.apply(model, inputs)
        if returned is not None:
            raise MismatchError(
                f"method {self.name!r}: apply() must edit the model in place and return nothing, saw it return a "
                f"{type(returned).__name__}"
            )
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


def accepted_report(report: Report, accept: Callable[[Report], Report] | None) -> Report:
    """Pass a report through ``accept``, which returns it or raises."""
    accepted = report if accept is None else accept(report)
    if not isinstance(accepted, Report):
        raise ConfigurationError(
            f"accept: expected it to return the report, or to raise so that the edit is undone, saw {accepted!r}"
        )
    return accepted


def _changes(snapshot: ModelSnapshot, counts: EditCounts | None) -> tuple[TensorChange, ...]:
    return tuple(
        TensorChange(
            name=name,
            size=p.numel(),
            changed=count_changed(snapshot.before(name), p) if counts is None else counts.changed[name],
        )
        for name, p in snapshot.trainable().items()
    )


def _check_budget(changes: tuple[TensorChange, ...], budget: float | None, *, method: str) -> None:
    changed, size = sum(t.changed for t in changes), sum(t.size for t in changes)
    # 0.29 · 100 is 28.999…96 in floating point: a part in 10⁹ is forgiven.
    if budget is not None and changed > budget * size * (1 + 1e-9):
        raise BudgetError(
            f"method {method!r}: expected at most {budget:.3g} of the weights to change, saw {changed} of {size} "
            f"({changed / size:.3g}); the model was put back: choose weaker options, or raise max_fraction"
        )


def _reported(importance: Importance) -> ReportedImportance:
    return ReportedImportance(
        role=importance.role.value,
        count=importance.count,
        samples=importance.samples,
        batches=importance.trail.describe(),
        order=importance.trail.order,
        fingerprint=importance.fingerprint,
        relative_error=importance.relative_error,
    )


def plugin_fault(cls: type) -> str:
    """Say what is wrong with the class of a method, an estimator or a metric; "" when nothing is."""
    fault = class_fault(cls)
    if fault or not issubclass(cls, Unlearner):
        return fault
    needs, traits = (getattr(cls, name, None) for name in ("needs", "traits"))
    if not (isinstance(needs, frozenset) and needs <= frozenset(Need)):
        return f"{cls.__qualname__}.needs: expected a frozenset of Need, saw {needs!r}"
    if not isinstance(traits, UnlearnerTraits):
        return f"{cls.__qualname__}.traits: expected UnlearnerTraits, saw {traits!r}"
    return ""


def method_fault(owner: Any) -> str:
    """Say what is wrong with a method, an estimator or a metric, its class included; "" when nothing is."""
    fault = plugin_fault(type(owner)) or object_fault(owner)
    if fault or not isinstance(owner, Unlearner):
        return fault
    cls = type(owner).__qualname__
    promises: Any = owner.promises()
    if not isinstance(promises, UnlearnerTraits):
        return f"{cls}.promises(): expected UnlearnerTraits, saw {promises!r}"
    unknown = sorted(promises.monotone - option_values(owner).keys())
    return f"{cls}.traits.monotone: expected names of options, saw {', '.join(unknown)}" if unknown else ""
