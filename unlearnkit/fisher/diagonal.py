"""The diagonal empirical Fisher information: the sum of squared per-sample gradients, exactly."""

from typing import Any, ClassVar, final

import attrs
from torch import nn

from unlearnkit.estimator import Accumulator, EstimatorTraits, ImportanceEstimator
from unlearnkit.fisher.choice import Chooser
from unlearnkit.fisher.engine import Engine
from unlearnkit.fisher.general import SquaredGradients
from unlearnkit.fisher.totals import Totals
from unlearnkit.importance import Importance
from unlearnkit.objective import Objective
from unlearnkit.options import option
from unlearnkit.parameters import trainable


@final
@attrs.frozen(kw_only=True)
class DiagonalFisher(ImportanceEstimator):
    """F_j = Σ_i (∂/∂θ_j −log p(y_i | x_i))², labels from the data: the empirical Fisher, per sample.

    The totals do not depend on batch size, order or chunking, and each sample counts one term.

    Source: Kunstner, Balles and Hennig 2019 (Limitations of the Empirical Fisher Approximation), F̃; the use
    as importance: Kirkpatrick et al. 2017.

    Example:
        >>> import torch
        >>> from unlearnkit.objective import CrossEntropy
        >>> model = nn.Linear(1, 2, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[2.0], [4.0]]), torch.tensor([0, 1]))]
        >>> DiagonalFisher().estimate(model, data, objective=CrossEntropy()).totals["weight"]
        tensor([[5.],
                [5.]])
    """

    name: ClassVar[str] = "diagonal-fisher"
    traits: ClassVar[EstimatorTraits] = EstimatorTraits(batch_free=True, quadratic=True)

    memory_mib: int = option(
        512, at_least=1, meaning=False, doc="bound on the per-sample gradients held at one time, in MiB"
    )
    chunk: int = option(0, at_least=0, meaning=False, doc="samples differentiated together; 0: as many as fit")
    accumulate: str = option(
        "float32",
        choices=("float32", "float64"),
        doc="square and add in at least this precision; a float64 model always uses float64",
    )
    kernels: str = option(
        "fixed",
        choices=("fixed", "timed"),
        meaning=False,
        doc="kernels by rule, with the same bits in every run, or the fastest, timed once per layer",
    )

    def accumulator(self, model: nn.Module, *, objective: Objective) -> Accumulator:
        """Start a pass of the engine; see `ImportanceEstimator.accumulator`."""
        memory = self.memory_mib << 20
        double = self.accumulate == "float64"
        general = SquaredGradients(model, objective, chunk=self.chunk, memory=memory, double=double, quiet=True)
        totals = Totals(trainable(model), double=double, memory=memory, chooser=Chooser(timed=self.kernels == "timed"))
        return Engine(model, objective, totals=totals, general=general, chunk=self.chunk)

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        """Square and add the gradient of every sample; see `ImportanceEstimator.estimate_batch`."""
        one = self.accumulator(model, objective=objective)
        one.add(batch)
        return one.result()
