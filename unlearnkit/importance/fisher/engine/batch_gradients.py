"""The gradients of batches: Σ_i g_i of the current one, and what those of a whole pass come to."""

from collections.abc import Callable
from typing import final

from torch import Tensor

from unlearnkit.importance.fisher.engine.totals import Totals


@final
class BatchGradients:
    """Takes Σ_{i∈b} g_i of each batch b, and adds it and its square up when the batch ends."""

    def __init__(self, make: Callable[[], Totals]) -> None:
        self.batch = make()
        """Σ_i g_i of the current batch; what the rules add to."""
        self._signed, self._squares = make(), make()

    def end_batch(self, size: int) -> None:
        """Take over the sum of a batch of so many samples; the next starts at zero."""
        for name, layout, batch, finish in self.batch.whole():
            self._signed.buffer(name, layout, tuple(batch.shape), finish).add_(batch)
            self._squares.buffer(name, layout, tuple(batch.shape), finish).addcmul_(batch, batch, value=1 / size)
            batch.zero_()

    def signed(self) -> dict[str, Tensor]:
        """Return Σ_i g_i of the pass, and give the buffers back."""
        return self._signed.result(last=True)

    def squares(self) -> dict[str, Tensor]:
        """Return Σ_b n_b (1/n_b Σ_{i∈b} g_i)² of the pass, and give the buffers back."""
        return self._squares.result(last=True)
