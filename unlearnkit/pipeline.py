"""`Pipeline`: estimate two importances, edit, report; and `unlearn`, the short way to one."""

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, final

import attrs
from torch import nn

from unlearnkit.data.loaders import draw_samples
from unlearnkit.distributed.sharded_tensors import reshard
from unlearnkit.importance.estimator import ImportanceEstimator
from unlearnkit.importance.fisher import DiagonalFisher
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import Role
from unlearnkit.importance.sampled_reference import sampled_reference
from unlearnkit.models.objective import CrossEntropy, Objective, check_objective
from unlearnkit.models.parameters import digest_tensors
from unlearnkit.models.selection import only_selected, patterns
from unlearnkit.models.snapshot import ModelSnapshot
from unlearnkit.plugins.hookspecs import Run
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.unlearner import (
    Need,
    Unlearner,
    UnlearningInputs,
    accepted_report,
    check_fraction,
    method_fault,
)
from unlearnkit.utils.errors import ConfigurationError, MismatchError, nearest, raise_all
from unlearnkit.utils.options import option_values, options_of, refuse
from unlearnkit.utils.progress import Progress, progress_of
from unlearnkit.utils.structuring import call

_LOG = logging.getLogger(__name__)

Source = Iterable[Any] | Importance | Callable[[], Importance]
"""Batches, an importance that is known already, or a function that returns one."""


class Edit(Protocol):
    """Makes an edit: `Unlearner.unlearn`, or a search that ends in one."""

    def __call__(self, model: nn.Module, inputs: UnlearningInputs, *, accept: Callable[[Report], Report]) -> Report:
        """Edit the model in place; pass the report through ``accept``, unless nothing was edited, and return it."""


def _is_a(kind: type) -> Callable[[Any, "attrs.Attribute[Any]", Any], None]:
    def check(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
        if not isinstance(value, kind):
            hint = ": pass an object, not its class" if isinstance(value, type) and issubclass(value, kind) else ""
            hint = ": unlearn() takes the name of a method" if isinstance(value, str) and kind is Unlearner else hint
            where = f"Pipeline.{field.name}: expected an object of {kind.__name__}"
            raise ConfigurationError(f"{where}, saw {value!r}{hint}")
        refuse(method_fault(value))

    return check


def _at_least_0(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"Pipeline.{field.name}: expected a whole number ≥ 0, saw {value!r}")


@final
@attrs.frozen(eq=False)
class Pipeline:
    """Estimate what matters to the forget set and to the reference, edit the model in place, report.

    Attributes:
        unlearner: The method; it may be given by position, all others by name.
        estimator: Measures both importances.
        normalise: Compare means over samples; False compares sums, as the notebook's un-normalised variant does.
        reference_role: Whether ``reference`` is the full set D (the paper) or the retain set D_r (the notebook).
        max_fraction: The largest fraction of weights that may change; beyond it, the edit is rolled back.
        reference_samples: Draw so many samples of the retain data for the reference, from the seed of the run, and keep
            the forget set exact; 0 measures all of ``reference``. See `unlearnkit.importance.sampled_reference`.
        only: Patterns of the names of parameters that may change, as ``("*.mlp.*",)``; all others are frozen during
            the run. ``"type:Embedding"`` matches the parameters of modules of that class.
        exclude: Patterns of parameters that may not, as ``("*norm*", "type:Embedding")``.
        plugins: The manager whose observers are called.

    Examples:
        >>> import torch
        >>> from unlearnkit_methods.ssd import SelectiveSynapticDampening
        >>> model = nn.Linear(2, 2)
        >>> forget = [(torch.tensor([[9.0, 0.0]]), torch.tensor([0]))]
        >>> retain = [(torch.tensor([[0.0, 9.0]]), torch.tensor([1]))]
        >>> pipeline = Pipeline(SelectiveSynapticDampening(alpha=1.5), reference_role="retain")
        >>> report = pipeline.run(model, forget=forget, reference=retain)
        >>> [t.name for t in report.tensors]
        ['weight', 'bias']
    """

    unlearner: Unlearner = attrs.field(validator=_is_a(Unlearner))
    estimator: ImportanceEstimator = attrs.field(
        factory=DiagonalFisher, validator=_is_a(ImportanceEstimator), kw_only=True
    )
    normalise: bool = attrs.field(default=True, kw_only=True)
    reference_role: Role = attrs.field(default=Role.FULL, converter=Role, kw_only=True)
    max_fraction: float | None = attrs.field(default=None, validator=check_fraction, kw_only=True)
    reference_samples: int = attrs.field(default=0, validator=_at_least_0, kw_only=True)
    only: tuple[str, ...] = attrs.field(default=(), converter=patterns, kw_only=True)
    exclude: tuple[str, ...] = attrs.field(default=(), converter=patterns, kw_only=True)
    plugins: PluginManager = attrs.field(factory=default_manager, repr=False, kw_only=True)

    def run(
        self,
        model: nn.Module,
        *,
        forget: Source | None = None,
        reference: Source | None = None,
        forget_data: Iterable[Any] | None = None,
        retain_data: Iterable[Any] | None = None,
        model_factory: Callable[[], nn.Module] | None = None,
        objective: Objective | None = None,
        seed: int = 0,
        accept: Callable[[Report], Report] | None = None,
        edit: Edit | None = None,
        progress: Progress | bool = True,
    ) -> Report:
        """Estimate what the method needs and edit the model; the report has the seconds of each stage.

        The model is checked and hashed, and copied where that is needed, once for both importances and the edit.

        Args:
            model: Edited in place, on its device; after an exception it is bit-identical to what it was.
            forget: Batches of the forget set; or their importance, or a function that returns it, which is called only
                when the method needs it.
            reference: The same for the reference set; left out with ``reference_samples``, which are drawn from
                ``retain_data``.
            forget_data: Batches for methods that train on the forget set; ``forget`` when left out.
            retain_data: Batches for methods that train on the retain set.
            model_factory: For methods that start from a fresh model.
            objective: How a batch becomes losses; `CrossEntropy` when left out.
            seed: For methods that draw numbers, and for ``reference_samples``.
            accept: As in `Unlearner.unlearn`.
            edit: Makes the edit, by default `Unlearner.unlearn`; takes the same arguments.
            progress: Whether to show a bar for each long stage, as in `ImportanceEstimator.estimate`.
        """
        if not isinstance(model, nn.Module):
            raise ConfigurationError(f"expected a model, a torch.nn.Module, saw a {type(model).__name__}")
        objective = check_objective(CrossEntropy() if objective is None else objective)
        run = Run(
            method=self.unlearner.name,
            options=option_values(self.unlearner),
            estimator=self.estimator.name,
            model=type(model).__qualname__,
        )
        provider, show = self.plugins.provider_of(type(self.unlearner)), progress_of(progress)
        seconds: dict[str, float] = {}
        snapshot: ModelSnapshot | None = None
        measured: dict[str, Importance] = {}  # by role
        watched = partial(_watched, model=model, measured=measured)
        self.plugins.before_run(run, watched=watched)

        def estimated(batches: Iterable[Any], role: Role) -> Importance:
            nonlocal snapshot
            snapshot = _current(snapshot) or self.estimator.snapshot_of(model)
            return self.estimator.estimate(
                model, batches, objective=objective, role=role, progress=show, snapshot=snapshot
            )

        def importance(need: Need, source: Source | None, role: Role) -> Importance | None:
            if need not in self.unlearner.requires():
                return None
            if source is None:
                who, name = f"method {self.unlearner.name!r}", need.value
                raise ConfigurationError(f"{who} needs the {name} set: pass {name}= batches or an Importance")
            start = time.perf_counter()
            if isinstance(source, Importance):
                found = source
            elif callable(source):
                found = source()
                if not isinstance(found, Importance):
                    raise ConfigurationError(
                        f"{role.value}: expected a function that returns an Importance, saw one that returns a "
                        f"{type(found).__name__}: pass the batches themselves, as a list or a loader"
                    )
            else:
                found = estimated(source, role)
            if found is not source:
                seconds[f"{role.value} importance"] = time.perf_counter() - start
                _LOG.info("importance of the %s set: %r, %.2f s", role.value, found, time.perf_counter() - start)
            found = attrs.evolve(found, role=role) if found.role is Role.UNKNOWN else found
            if left_out:  # it may be of all weights
                found = attrs.evolve(found, totals={n: t for n, t in found.totals.items() if n not in left_out})
            measured[role.value] = found
            self.plugins.after_estimate(run, role.value, found, watched=watched)
            return found if self.normalise else found.unnormalised()

        def sampled() -> Importance:
            return self._sampled(
                estimated,
                measured.get(Role.FORGET.value),
                reference=reference,
                forget_data=forget_data,
                retain_data=retain_data,
                seed=seed,
            )

        def completed(report: Report) -> Report:
            return attrs.evolve(report, seconds={**seconds, **report.seconds}, provider=provider, left_out=left_out)

        def accepted(report: Report) -> Report:
            complete = accepted_report(completed(report), accept)
            self.plugins.after_run(run, complete, watched=watched)
            if _LOG.isEnabledFor(logging.INFO):
                _LOG.info("%s", complete.sentence())
            return complete

        if forget_data is None and not isinstance(forget, Importance) and not callable(forget):
            forget_data = forget
        some = self.only or self.exclude
        with only_selected(model, only=self.only, exclude=self.exclude) if some else nullcontext(()) as left_out:
            inputs = UnlearningInputs(
                forget=importance(Need.FORGET_IMPORTANCE, forget, Role.FORGET),
                reference=importance(
                    Need.REFERENCE_IMPORTANCE, sampled if self.reference_samples else reference, self.reference_role
                ),
                forget_data=forget_data,
                retain_data=retain_data,
                model_factory=model_factory,
                objective=objective,
                seed=seed,
                max_fraction=self.max_fraction,
                progress=show,
            )
            if edit is not None:
                return completed(edit(model, inputs, accept=accepted))
            return self.unlearner.unlearn(model, inputs, accept=accepted, snapshot=_current(snapshot))

    def _sampled(
        self,
        estimated: Callable[[Iterable[Any], Role], Importance],
        forget: Importance | None,
        *,
        reference: Source | None,
        forget_data: Iterable[Any] | None,
        retain_data: Iterable[Any] | None,
        seed: int,
    ) -> Importance:
        """Measure the reference on samples of the retain data, and on the forget set where it is the full set."""
        where = "Pipeline.reference_samples: expected"
        if reference is not None or retain_data is None:
            seen = "no retain_data" if retain_data is None else "a reference"
            raise ConfigurationError(f"{where} retain_data= to draw from, and no reference=, saw {seen}")
        if self.reference_role is Role.RETAIN:
            forget = None
        elif forget is None:
            if forget_data is None:
                raise ConfigurationError(f"{where} forget= batches, for they are exact, saw none")
            forget = estimated(forget_data, Role.FORGET)
        drawn, retained = draw_samples(retain_data, count=self.reference_samples, seed=seed)
        return sampled_reference(estimated(drawn, Role.RETAIN), retained=retained, seed=seed, forget=forget)


@contextmanager
def _watched(observer: str, *, model: nn.Module, measured: Mapping[str, Importance]) -> Iterator[None]:
    """Put the model back after a call of an observer; name one that changed it or an importance."""
    reshard(model)
    was, digests = ModelSnapshot(model), {role: _digest(found) for role, found in measured.items()}
    changed: list[str] = []
    try:
        was.hide_gradients()
        yield
        changed += [*was.structure_changes(), *was.changed_parameters(), *was.changed_buffers()]
    finally:
        was.restore()
    where = f"{observer}: an observer must not change"
    if changed:
        raise MismatchError(
            f"{where} the model, which was put back, saw changes of {', '.join(changed)}: remove the plugin"
        )
    spoilt = [role for role, found in measured.items() if _digest(found) != digests[role]]
    if spoilt:
        raise MismatchError(
            f"{where} an importance, saw changes of {', '.join(spoilt)}: remove the plugin and measure it again"
        )


def _digest(importance: Importance) -> str:
    return digest_tensors(dict(importance.totals))


def _current(snapshot: ModelSnapshot | None) -> ModelSnapshot | None:
    """Raise an error for a model that was changed since the snapshot, by an observer, say."""
    if snapshot is not None:
        problems = [*snapshot.structure_changes(), *snapshot.changed_parameters(), *snapshot.changed_buffers()]
        raise_all(problems, where="the model was edited or trained since its importance was measured; estimate again")
    return snapshot


def unlearn(
    model: nn.Module,
    method: str | Unlearner,
    *,
    forget: Source,
    retain: Source | None = None,
    full: Source | None = None,
    objective: Objective | None = None,
    estimator: str | ImportanceEstimator | None = None,
    model_factory: Callable[[], nn.Module] | None = None,
    max_fraction: float | None = None,
    only: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    seed: int = 0,
    progress: Progress | bool = True,
    plugins: PluginManager | None = None,
    **options: Any,
) -> Report:
    """Make a model forget: estimate what the method needs, edit the model in place, return the report.

    Methods that compare importances compare that of ``forget`` with that of ``full``, or with that of ``retain`` where
    ``full`` is left out. Methods that train read ``forget`` and ``retain``. `Pipeline` has more settings.

    Args:
        model: Edited in place, on its device; after an exception it is bit-identical to what it was.
        method: The name of a method, as ``"ssd"``, or an object.
        forget: Batches of the forget set D_f, such as a data loader; or its `Importance`.
        retain: The same for the retain set D_r = D − D_f.
        full: The same for the full set D.
        objective: How a batch becomes losses; `CrossEntropy` when left out. Others are in `unlearnkit.models`.
        estimator: The name of an estimator of importances, or an object; `DiagonalFisher` when left out.
        model_factory: For methods that start from a fresh model.
        max_fraction: The largest fraction of weights that may change; beyond it, the edit is rolled back.
        only: Patterns of the names of parameters that may change; see `Pipeline`.
        exclude: Patterns of parameters that may not.
        seed: For methods that draw numbers.
        progress: Whether to show bars on a terminal and in a notebook, or a function that shows one.
        plugins: Finds methods and estimators by name.
        options: Options of the method, for a method that is given by name.

    Raises:
        UnknownMethodError: No method or estimator has this name; the message names the closest.
        ConfigurationError: An option that the method does not have, or data that it needs and were not given.

    Examples:
        >>> import torch
        >>> model = nn.Linear(2, 2)
        >>> forget = [(torch.tensor([[9.0, 0.0]]), torch.tensor([0]))]
        >>> retain = [(torch.tensor([[0.0, 9.0]]), torch.tensor([1]))]
        >>> report = unlearn(model, forget=forget, retain=retain, method="ssd", fraction=0.5)
        >>> report.changed > 0
        True
        >>> unlearn(model, forget=forget, retain=retain, method="ssd", fractoin=0.5)
        Traceback (most recent call last):
        unlearnkit.utils.errors.ConfigurationError: unlearn: unknown option 'fractoin' of method 'ssd'; did you mean \
'fraction'? ...
    """
    manager = plugins or default_manager()
    pipeline = Pipeline(
        _method(method, options, manager),
        estimator=manager.estimator(estimator)() if isinstance(estimator, str) else estimator or DiagonalFisher(),
        reference_role=Role.RETAIN if full is None else Role.FULL,
        max_fraction=max_fraction,
        only=patterns(only),
        exclude=patterns(exclude),
        plugins=manager,
    )
    reference, name, needs = retain if full is None else full, pipeline.unlearner.name, pipeline.unlearner.requires()
    if Need.REFERENCE_IMPORTANCE in needs and reference is None:
        raise ConfigurationError(f"unlearn: method {name!r} compares with other data, saw none: pass retain= or full=")
    trains_on = {Need.FORGET_DATA: ("forget", forget), Need.RETAIN_DATA: ("retain", retain)}
    for need in sorted(needs & trains_on.keys(), key=lambda need: need.value):
        what, data = trains_on[need]
        if data is None or isinstance(data, Importance) or callable(data):
            seen = "none" if data is None else "an importance"
            raise ConfigurationError(
                f"unlearn: method {name!r} trains on the {what} set: pass {what}= batches, saw {seen}"
            )
    return pipeline.run(
        model,
        forget=forget,
        reference=reference,
        retain_data=retain if Need.RETAIN_DATA in needs else None,  # type: ignore[arg-type]  # checked above
        model_factory=model_factory,
        objective=objective,
        seed=seed,
        progress=progress,
    )


def _method(method: str | Unlearner, options: dict[str, Any], plugins: PluginManager) -> Unlearner:
    if not isinstance(method, str):
        if options:
            raise ConfigurationError(
                f"unlearn: expected options of a method that is given by name, saw {', '.join(options)} beside "
                f"{method!r}: set them there"
            )
        return method
    kind = plugins.unlearner(method)
    known = [o.name for o in options_of(kind)]
    for name in options:
        if name not in known:
            others = [p.name for p in inspect.signature(unlearn).parameters.values() if p.name != "options"]
            advice = nearest(name, [*known, *others])
            raise ConfigurationError(f"unlearn: unknown option {name!r} of method {method!r}{advice}")
    return call(kind, options, where=f"unlearn: method {method!r}")
