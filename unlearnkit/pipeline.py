"""The main job in one object: estimate two importances, edit, report."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import attrs
from torch import nn

from unlearnkit.importance.estimator import ImportanceEstimator
from unlearnkit.importance.fisher import DiagonalFisher
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import Role
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.plugins.hookspecs import Run
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.unlearner import Need, Unlearner, UnlearningInputs, check_fraction
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.options import option_values
from unlearnkit.utils.progress import Progress, silent


def _is_a(kind: type) -> Callable[[Any, "attrs.Attribute[Any]", Any], None]:
    def check(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
        if not isinstance(value, kind):
            hint = ": pass an object, not its class" if isinstance(value, type) and issubclass(value, kind) else ""
            raise ConfigurationError(
                f"Pipeline.{field.name}: expected an object of {kind.__name__}, saw {value!r}{hint}"
            )

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
        plugins: Whose observers are told of the run.

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
    plugins: PluginManager = attrs.field(factory=default_manager, repr=False)

    def run(
        self,
        model: nn.Module,
        *,
        forget: Iterable[Any] | Importance | None = None,
        reference: Iterable[Any] | Importance | None = None,
        forget_data: Iterable[Any] | None = None,
        retain_data: Iterable[Any] | None = None,
        model_factory: Callable[[], nn.Module] | None = None,
        objective: Objective | None = None,
        seed: int = 0,
        progress: Progress = silent,
    ) -> Report:
        """Run the main job on a model, where the model is.

        Args:
            model: Edited in place; after an exception it is bit-identical to what it was.
            forget: Batches of the forget set, or their importance if it is known already.
            reference: Batches of the reference set, or their importance.
            forget_data: Batches for methods that train on the forget set; ``forget`` when left out.
            retain_data: Batches for methods that train on the retain set.
            model_factory: For methods that start from a fresh model.
            objective: How a batch becomes losses; `CrossEntropy` when left out.
            seed: For methods that draw numbers.
            progress: Shows a bar for each long stage.

        Returns:
            What was done, with the seconds of each stage.
        """
        objective = objective or CrossEntropy()
        run = Run(
            method=self.unlearner.name,
            options=option_values(self.unlearner),
            estimator=self.estimator.name,
            model=type(model).__qualname__,
        )
        provider = self.plugins.provider_of(type(self.unlearner))
        self.plugins.before_run(run)
        seconds: dict[str, float] = {}

        def importance(need: Need, source: Iterable[Any] | Importance | None, role: Role) -> Importance | None:
            if need not in self.unlearner.needs:
                return None
            if source is None:
                raise ConfigurationError(
                    f"method {self.unlearner.name!r} needs the {need.value} set: pass {need.value}= batches or an "
                    "Importance"
                )
            if isinstance(source, Importance):
                found = attrs.evolve(source, role=role) if source.role is Role.UNKNOWN else source
            else:
                with _timed(seconds, f"{role.value} importance"):
                    found = self.estimator.estimate(model, source, objective=objective, role=role, progress=progress)
            self.plugins.after_estimate(run, role.value, found)
            return found if self.normalise else found.unnormalised()

        def accept(report: Report) -> Report:
            complete = attrs.evolve(report, seconds={**seconds, **report.seconds}, provider=provider)
            self.plugins.after_run(run, complete)
            return complete

        inputs = UnlearningInputs(
            forget=importance(Need.FORGET_IMPORTANCE, forget, Role.FORGET),
            reference=importance(Need.REFERENCE_IMPORTANCE, reference, self.reference_role),
            forget_data=forget_data if forget_data is not None or isinstance(forget, Importance) else forget,
            retain_data=retain_data,
            model_factory=model_factory,
            objective=objective,
            seed=seed,
            max_fraction=self.max_fraction,
            progress=progress,
        )
        return self.unlearner.unlearn(model, inputs, accept=accept)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
