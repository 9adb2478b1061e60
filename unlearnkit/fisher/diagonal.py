"""The diagonal empirical Fisher information: the sum of squared per-sample gradients, exactly."""

from typing import Any, ClassVar, final

import attrs
from torch import nn

from unlearnkit.batches import batch_size
from unlearnkit.estimator import EstimatorTraits, ImportanceEstimator
from unlearnkit.fisher.general import SquaredGradients
from unlearnkit.importance import Importance
from unlearnkit.objective import Objective
from unlearnkit.options import option


@final
@attrs.frozen(kw_only=True)
class DiagonalFisher(ImportanceEstimator):
    """F_j = Σ_i (∂/∂θ_j −log p(y_i | x_i))², labels from the data: the empirical Fisher, per sample.

    The totals do not depend on batch size, order or chunking, and each sample counts one term.

    Source: Kunstner, Balles and Hennig 2019, equation 3 (Limitations of the Empirical Fisher Approximation); the use
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
    chunk: int = option(0, at_least=0, meaning=False, doc="samples differentiated together; 0 chooses by memory_mib")

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        """Square and add the gradient of every sample; see `ImportanceEstimator.estimate_batch`."""
        squares = SquaredGradients(model, objective, chunk=self.chunk, memory=self.memory_mib << 20)
        return Importance(totals=squares(batch), count=batch_size(batch))
