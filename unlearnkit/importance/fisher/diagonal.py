"""The diagonal empirical Fisher information: the sum of squared per-sample gradients, exactly."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, ClassVar, final

import attrs
from torch import nn

from unlearnkit.distributed.sharded_tensors import is_sharded_model
from unlearnkit.importance.estimator import Accumulator, EstimatorTraits, ImportanceEstimator
from unlearnkit.importance.fisher.engine.engine import Engine
from unlearnkit.importance.fisher.engine.kernel import KernelSet
from unlearnkit.importance.fisher.engine.per_sample_fallback import SquaredGradients
from unlearnkit.importance.fisher.engine.totals import BatchGradients, GroupTotals, Totals
from unlearnkit.importance.fisher.sharded.engine import ShardedEngine
from unlearnkit.importance.importance import Importance
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import trainable
from unlearnkit.utils.kernel_source import plugin_kernels
from unlearnkit.utils.options import option


@final
@attrs.frozen(kw_only=True)
class DiagonalFisher(ImportanceEstimator):
    """F_j = Σ_i (∂/∂θ_j −log p(y_i | x_i))², labels from the data: the empirical Fisher, per sample.

    The totals do not depend on batch size, order or chunking, and each sample counts one term.

    Source: Kunstner, Balles and Hennig 2019 (Limitations of the Empirical Fisher Approximation), F̃; the use
    as importance: Kirkpatrick et al. 2017.

    Examples:
        >>> import torch
        >>> from unlearnkit.models.objective import CrossEntropy
        >>> model = nn.Linear(1, 2, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[2.0], [4.0]]), torch.tensor([0, 1]))]
        >>> DiagonalFisher().estimate(model, data, objective=CrossEntropy()).totals["weight"]
        tensor([[5.],
                [5.]])
    """

    name: ClassVar[str] = "diagonal-fisher"
    traits: ClassVar[EstimatorTraits] = EstimatorTraits(
        batch_free=True, quadratic=True, sharded=True, leaves_weights=True
    )

    memory_budget: int = option(
        64,
        at_least=1,
        meaning=False,
        doc="in MiB: bound on the per-sample work held at one time, beside the size of the weights",
    )
    chunk: int = option(0, at_least=0, meaning=False, doc="samples differentiated together; 0: as many as fit")
    accumulate: str = option(
        "float32",
        choices=("float32", "compensated", "float64"),
        doc="square and add in at least float32; in float32 and keep what rounding loses from batch to batch; or in "
        "float64, as a float64 model always does",
    )
    kernels: str = option(
        "auto",
        choices=("auto", "fixed", "compiled"),
        meaning=False,
        doc="`auto`: kernels of plugins where they apply, such as the C++ kernels for CPUs, and PyTorch operations "
        "elsewhere; `compiled`: the same, but a kernel that cannot be used is an error; `fixed`: PyTorch operations "
        "only, with the same bits on every run",
    )

    recheck: int = option(
        64,
        at_least=0,
        meaning=False,
        doc="check one pass of every N: do three random samples have the same losses when they run alone? 0: only the "
        "first batch",
    )

    def accumulator(self, model: nn.Module, *, objective: Objective) -> Accumulator:
        """Start a pass of the engine; see `ImportanceEstimator.accumulator`."""
        if is_sharded_model(model):
            return ShardedEngine(
                model,
                objective,
                memory=self.memory_budget << 20,
                double=self.accumulate == "float64",
                compensated=self.accumulate == "compensated",
                chunk=self.chunk,
            )
        return start(self, model, objective=objective)

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        """Square and add the gradient of every sample; see `ImportanceEstimator.estimate_batch`."""
        one = self.accumulator(model, objective=objective)
        one.add(batch)
        return one.result()


def start(
    fisher: DiagonalFisher,
    model: nn.Module,
    *,
    objective: Objective,
    absolute: bool = False,
    gradient: bool = False,
    keys: Callable[[], Sequence[Hashable]] | None = None,
) -> Engine:
    """Start a pass of the engine; ``keys`` returns the group of each sample of the next batch."""
    memory, compensated = fisher.memory_budget << 20, fisher.accumulate == "compensated"
    kernels = None
    if fisher.kernels != "fixed":
        kernels = KernelSet(plugin_kernels(), required=fisher.kernels == "compiled")
    empty = partial(Totals, trainable(model), double=fisher.accumulate == "float64", memory=memory, kernels=kernels)
    gradients = BatchGradients(partial(empty, signed=True)) if gradient else None
    return Engine(
        model,
        objective,
        totals=GroupTotals(partial(empty, compensated=compensated), absolute=absolute, gradients=gradients),
        fallback=SquaredGradients(model, objective, chunk=fisher.chunk, memory=memory),
        chunk=fisher.chunk,
        careful=compensated,
        recheck=fisher.recheck,
        keys=keys,
    )
