"""What an edit may look at: importances, data, and the means to train."""

import enum
from collections.abc import Callable, Iterable
from typing import Any, final

import attrs
from torch import Tensor, nn

from unlearnkit.importance.importance import Importance
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.utils.errors import ConfigurationError, raise_all
from unlearnkit.utils.progress import Progress, silent


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


@final
@attrs.frozen(kw_only=True, eq=False)
class UnlearningInputs:
    """What an edit may look at. Only what the method declares in ``needs`` must be there.

    Attributes:
        forget: Importance for the forget set D_f.
        reference: Importance for the full set D (the paper) or the retain set D_r (the notebook); its role says which.
        forget_data: Batches of D_f that can be iterated more than once.
        retain_data: Batches of D_r that can be iterated more than once.
        model_factory: Makes a fresh, untrained model of the same kind.
        objective: How a batch becomes losses.
        seed: For methods that draw numbers.
        max_fraction: The largest fraction of weights that the edit may change; beyond it, it is rolled back.
        progress: Shows a bar for long stages.
    """

    forget: Importance | None = None
    reference: Importance | None = None
    forget_data: Iterable[Any] | None = None
    retain_data: Iterable[Any] | None = None
    model_factory: Callable[[], nn.Module] | None = None
    objective: Objective = attrs.field(factory=CrossEntropy)
    seed: int = 0
    max_fraction: float | None = attrs.field(default=None, validator=check_fraction)
    progress: Progress = silent

    def mean_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean of the objective's losses of a batch, a scalar tensor."""
        return self.objective.losses(model, batch).mean()

    def check(self, needs: Iterable[Need], *, method: str) -> None:
        """Refuse inputs in which something that a method needs is missing, or whose importances do not match.

        Args:
            needs: What the method declares.
            method: Its name, for the message.

        Raises:
            ConfigurationError: Something is missing.
            UnlearnKitError: The importances are of different kinds.
        """
        missing = [
            f"expected {need.value} (the method declares {need.name}), saw None"
            for need in sorted(needs, key=lambda need: need.name)
            if getattr(self, need.value) is None
        ]
        raise_all(missing, where=f"inputs for {method!r}", error=ConfigurationError)
        if self.forget is not None and self.reference is not None:
            problems = self.forget.kind_problems(self.reference)
            raise_all(problems, where="the forget and the reference importance are of different kinds")
