"""`Pipeline`: estimate two importances, edit, report."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, final

import attrs
from torch import nn

from unlearnkit.data.loaders import draw_samples
from unlearnkit.importance.estimator import ImportanceEstimator, snapshot_of
from unlearnkit.importance.fisher import DiagonalFisher
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import Role
from unlearnkit.importance.sampled_reference import sampled_reference
from unlearnkit.models.objective import CrossEntropy, Objective, check_objective
from unlearnkit.models.parameters import digest_tensors, parameters_and_buffers
from unlearnkit.models.snapshot import ModelSnapshot
from unlearnkit.plugins.hookspecs import Run
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.unlearner import Need, Unlearner, UnlearningInputs, check_fraction, plugin_fault
from unlearnkit.utils.errors import ConfigurationError, raise_all
from unlearnkit.utils.options import option, option_values, refuse
from unlearnkit.utils.progress import Progress, silent

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
            where = f"Pipeline.{field.name}: expected an object of {kind.__name__}"
            raise ConfigurationError(f"{where}, saw {value!r}{hint}")
        refuse(plugin_fault(type(value)))

    return check


@final
@attrs.frozen(kw_only=True, eq=False)
class Pipeline:
    """Estimate what matters to the forget set and to the reference, edit the model in place, report.

    Attributes:
        unlearner: The method.
        estimator: Measures both importances.
        normalise: Compare means over samples; False compares sums, as the notebook's un-normalised variant does.
        reference_role: Whether ``reference`` is the full set D (the paper) or the retain set D_r (the notebook).
        max_fraction: The largest fraction of weights that may change; beyond it, the edit is rolled back.
        reference_samples: Draw so many samples of the retain data for the reference, from the seed of the run, and keep
            the forget set exact; 0 measures all of ``reference``. See `unlearnkit.importance.sampled_reference`.
        plugins: The manager whose observers are called.

    Example:
        >>> import torch
        >>> from unlearnkit_methods.ssd import SelectiveSynapticDampening
        >>> model = nn.Linear(2, 2)
        >>> forget = [(torch.tensor([[9.0, 0.0]]), torch.tensor([0]))]
        >>> retain = [(torch.tensor([[0.0, 9.0]]), torch.tensor([1]))]
        >>> pipeline = Pipeline(unlearner=SelectiveSynapticDampening(alpha=1.5), reference_role="retain")
        >>> report = pipeline.run(model, forget=forget, reference=retain)
        >>> [t.name for t in report.tensors]
        ['weight', 'bias']
    """

    unlearner: Unlearner = attrs.field(validator=_is_a(Unlearner))
    estimator: ImportanceEstimator = attrs.field(factory=DiagonalFisher, validator=_is_a(ImportanceEstimator))
    normalise: bool = True
    reference_role: Role = attrs.field(default=Role.FULL, converter=Role)
    max_fraction: float | None = attrs.field(default=None, validator=check_fraction)
    reference_samples: int = option(0, at_least=0, doc="retained samples that the reference is drawn from; 0: all")
    plugins: PluginManager = attrs.field(factory=default_manager, repr=False)

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
        progress: Progress = silent,
    ) -> Report:
        """Estimate what the method needs and edit the model; the report has the seconds of each stage.

        The model is checked, copied and hashed once for both importances and the edit.

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
            progress: Shows a bar for each long stage.
        """
        objective = check_objective(CrossEntropy() if objective is None else objective)
        run = Run(
            method=self.unlearner.name,
            options=option_values(self.unlearner),
            estimator=self.estimator.name,
            model=type(model).__qualname__,
        )
        provider = self.plugins.provider_of(type(self.unlearner))
        seconds: dict[str, float] = {}
        measured: dict[Need, Importance] = {}
        snapshot: ModelSnapshot | None = None

        @contextmanager
        def watched(observer: str) -> Iterator[None]:
            """Name an observer that changes the model."""
            before = _digests(model)
            yield
            after = _digests(model)
            changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
            where = (
                f"{observer}: an observer must not change the model, which was edited or trained since it was called"
            )
            raise_all(changed, where=f"{where}; remove the plugin, load the model and estimate again")

        self.plugins.before_run(run, watched=watched)

        def estimated(batches: Iterable[Any], role: Role) -> Importance:
            nonlocal snapshot
            snapshot = _current(snapshot) or snapshot_of(model)
            return self.estimator.estimate(
                model, batches, objective=objective, role=role, progress=progress, snapshot=snapshot
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
            else:
                found = estimated(source, role)
            if found is not source:
                seconds[f"{role.value} importance"] = time.perf_counter() - start
            found = attrs.evolve(found, role=role) if found.role is Role.UNKNOWN else found
            self.plugins.after_estimate(run, role.value, found, watched=watched)
            measured[need] = found
            return found if self.normalise else found.unnormalised()

        def sampled() -> Importance:
            return self._sampled(
                estimated,
                measured.get(Need.FORGET_IMPORTANCE),
                reference=reference,
                forget_data=forget_data,
                retain_data=retain_data,
                seed=seed,
            )

        def completed(report: Report) -> Report:
            return attrs.evolve(report, seconds={**seconds, **report.seconds}, provider=provider)

        def accepted(report: Report) -> Report:
            complete = completed(report) if accept is None else accept(completed(report))
            self.plugins.after_run(run, complete, watched=watched)
            return complete

        if forget_data is None and not isinstance(forget, Importance) and not callable(forget):
            forget_data = forget
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
            progress=progress,
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


def _digests(model: nn.Module) -> dict[str, str]:
    return {name: digest_tensors({name: tensor}) for name, tensor in parameters_and_buffers(model).items()}


def _current(snapshot: ModelSnapshot | None) -> ModelSnapshot | None:
    """Raise an error for a model that was changed since the snapshot, by an observer, say."""
    if snapshot is not None:
        problems = [*snapshot.structure_changes(), *snapshot.changed_parameters(), *snapshot.changed_buffers()]
        raise_all(problems, where="the model was edited or trained since its importance was measured; estimate again")
    return snapshot
