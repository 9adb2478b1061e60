"""The point on the graph where the gradient of a layer's output is read."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

Sink = Callable[[Tensor, tuple[Tensor, ...]], None]


@final
class Tap(torch.autograd.Function):
    """The identity; its backward hands the gradient and the saved tensors to a sink and passes the gradient on.

    It works on its argument in place, so that what follows may do so too, and makes no copy. The saved tensors go
    through autograd's own hooks: checkpointing recomputes them, and an edit in place is detected.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, sink: Sink, *saved: Tensor) -> Tensor:
        """Return ``y`` itself; see the class. The anchor makes the result require a gradient."""
        del anchor
        ctx.save_for_backward(*saved)
        ctx.sink = sink
        ctx.count = len(saved)
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Hand the gradient to the sink and return it."""
        (g,) = grads
        if g is not None:
            saved = ctx.saved_tensors  # checkpointing recomputes them here, and must be seen doing it
            with torch._C.DisableTorchFunction(), torch.no_grad():  # noqa: SLF001 - torch's own switch
                ctx.sink(g, saved)
        return (g, None, None, *[None] * ctx.count)


def tap(y: Tensor, anchor: Tensor, sink: Sink, saved: tuple[Tensor, ...], *, fresh: bool = False) -> Tensor:
    """Put a tap on a tensor.

    Args:
        y: What a function just returned; used in place.
        anchor: A scalar leaf that requires a gradient.
        sink: Called in the backward pass with the gradient of ``y`` and the saved tensors.
        saved: Kept until then.
        fresh: The function made the memory of ``y`` anew, so that what ``y`` is a view of belongs to it alone.

    Returns:
        ``y``, or a copy where it is a view of something else.
    """
    base, shape = y._base if fresh else None, y.shape  # noqa: SLF001 - torch has no public name for it
    if base is not None and base.grad_fn is not None and base.numel() == y.numel() and _in_order(base, y):
        # A linear layer on (n, t, …) rows is a product of (n·t, …) rows, viewed: the tap sits under the view.
        Tap.apply(base, anchor, lambda g, kept: sink(g.reshape(shape), kept), *saved)
        return y
    own = y.clone() if y._is_view() else y  # noqa: SLF001
    tapped: Tensor = Tap.apply(own, anchor, sink, *saved)
    return tapped


def _in_order(base: Tensor, y: Tensor) -> bool:
    return base.is_contiguous() and y.is_contiguous()
