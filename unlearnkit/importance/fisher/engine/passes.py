"""Passes of a model by a script: forward under the interceptor, back to the taps, and a second look now and then."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size
from unlearnkit.importance.fisher.engine.accumulate import Following
from unlearnkit.importance.fisher.engine.group_totals import Part
from unlearnkit.importance.fisher.engine.interceptor import Interceptor
from unlearnkit.importance.fisher.engine.probe import Found
from unlearnkit.importance.fisher.engine.recheck import Alone, Recheck, look_again, too_late
from unlearnkit.models.objective import Objective, check_losses

SIZES = 8  # batch sizes of which the first pass is looked at as a whole
_IGNORE: Callable[[Tensor], None] = lambda _: None  # noqa: E731


@final
class Passes:
    """Adds squares by a script that is known, and looks at the first pass of each batch size and at one of so many."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        named: Mapping[str, nn.Parameter],
        device: torch.device,
        recheck: int = 0,
    ) -> None:
        self.model, self.objective, self.named, self.device = model, objective, named, device
        self._alone: Alone | None = None
        self._recheck = Recheck(recheck)
        self._sizes: set[int] = set()

    def expect(self, alone: Alone | None) -> None:
        """Have losses of the next pass compared."""
        self._alone = alone

    def count(self, batch: Any, found: Found) -> None:
        """Hear that a batch is to be added, and look at some of its samples alone when it is time to."""
        rows = self._recheck.rows(batch_size(batch))
        if len(rows) >= found.samples and self._alone is None:
            self._alone = self._again(batch, found, rows[: found.samples])

    def _again(self, batch: Any, found: Found, rows: Sequence[int]) -> Alone:
        passes = self._recheck.passes - 1
        with too_late(passes):
            losses = look_again(self.model, self.objective, batch, self.named, found=found, rows=rows)
        return Alone(rows=rows, losses=losses, passes=passes)

    def run(self, batch: Any, found: Found, parts: Sequence[Part]) -> None:
        """Make a pass."""
        look = self._look(batch, found, parts)
        with self._forward(batch, found, parts) as (losses, guide):
            look(losses)
            guide.backward(losses)
            guide.finish()

    @contextmanager
    def _forward(self, batch: Any, found: Found, parts: Sequence[Part]) -> Iterator[tuple[Tensor, Following]]:
        """Go forward, and yield the losses and what goes back from them."""
        guide = Following(found.script, batch_size(batch), parts)
        interceptor = Interceptor(self.named, guide, self.device)
        guide.interceptor = interceptor
        try:
            with interceptor:
                losses = self.objective.losses(self.model, batch)
            losses = check_losses(losses, batch, objective=self.objective)
            found.script.finish()
            yield losses, guide
        finally:
            guide.close()

    def _look(self, batch: Any, found: Found, parts: Sequence[Part]) -> Callable[[Tensor], None]:
        """Look at the first pass of a kind, and at one of so many, before it is made; return what looks at losses."""
        (alone, self._alone), size = (self._alone, None), batch_size(batch)
        check = partial(alone.check, precision=found.precision) if alone is not None else _IGNORE
        new = size not in self._sizes and len(self._sizes) < SIZES
        if size <= found.samples or not (new or (alone is not None and alone.passes)):
            return check
        # A pass of its own: to keep a graph for a second time takes more than a plain pass holds.
        with self._forward(batch, found, parts) as (losses, guide):
            check(losses)
            with too_late(alone.passes if alone is not None else 0):
                guide.check_owners(losses)
        self._sizes.add(size)
        return _IGNORE
