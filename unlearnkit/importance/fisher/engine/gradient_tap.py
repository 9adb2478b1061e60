"""The point on the graph where the gradient of a layer's output is read."""

from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
"""Of every floating result of a function, in order; None where nothing depends on it."""
Sink = Callable[[Gradients, tuple[Tensor, ...]], None]


@final
class Tap(torch.autograd.Function):
    """The identity; its backward hands the gradients and the saved tensors to a sink and passes the gradients on.

    It works on its arguments in place, so that what follows may do so too, and makes no copy. The saved tensors go
    through autograd's own hooks: checkpointing recomputes them, and an edit in place is detected.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, sink: Sink, count: int, *tensors: Tensor) -> Any:
        """Return the first ``count`` tensors themselves; see the class. The anchor makes them require gradients."""
        del anchor
        ctx.save_for_backward(*tensors[count:])
        ctx.sink = sink
        ctx.count = len(tensors)
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(*tensors[:count])
        return tensors[:count] if count > 1 else tensors[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Hand the gradients to the sink and return them."""
        if any(g is not None for g in grads):
            saved = ctx.saved_tensors  # checkpointing recomputes them here, and must be seen doing it
            with torch._C.DisableTorchFunction(), torch.no_grad():  # noqa: SLF001 - torch's own switch
                ctx.sink(grads, saved)
        return (None, None, None, *grads, *[None] * (ctx.count - len(grads)))


def tap(y: Tensor, anchor: Tensor, sink: Sink, saved: tuple[Tensor, ...], *, fresh: bool = False) -> Tensor:
    """Put a tap on a tensor."""
    base, shape = y._base if fresh else None, y.shape  # noqa: SLF001 - torch has no public name for it
    if base is not None and base.grad_fn is not None and base.numel() == y.numel() and _in_order(base, y):
        # A linear layer on (n, t, …) rows is a product of (n·t, …) rows, viewed: the tap sits under the view.
        # A view made anew, because torch goes back through ``y`` by a copy of its gradient.
        rows: Tensor = Tap.apply(anchor, lambda found, kept: sink((found[0].reshape(shape),), kept), 1, base, *saved)
        return rows.view(shape)
    own = y.clone() if y._is_view() else y  # noqa: SLF001
    tapped: Tensor = Tap.apply(anchor, sink, 1, own, *saved)
    return tapped


def tap_all(value: Any, anchor: Tensor, sink: Sink, saved: tuple[Tensor, ...]) -> Any:
    """Put one tap on all floating tensors of a result."""
    copies = [t.clone() for t in results(value)]
    tapped = Tap.apply(anchor, sink, len(copies), *copies, *saved)
    return _rebuilt(value, iter(tapped if isinstance(tapped, tuple) else (tapped,)))


def results(value: Any) -> list[Tensor]:
    """List the floating tensors of a function's result.

    Example:
        >>> len(results((torch.ones(2), [torch.ones(3), torch.arange(3)], None)))
        2
    """
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    return [t for item in value for t in results(item)] if isinstance(value, tuple | list) else []


def _rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(tensors) if value.is_floating_point() else value
    if not isinstance(value, tuple | list):
        return value
    items = [_rebuilt(item, tensors) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # named tuples take them one by one


def _in_order(base: Tensor, y: Tensor) -> bool:
    return base.is_contiguous() and y.is_contiguous()
