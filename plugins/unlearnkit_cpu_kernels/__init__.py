"""C++ kernels for the exact Fisher on a CPU in float32, compiled on the user's machine when they are first needed."""

from collections.abc import Iterable

from unlearnkit import hookimpl
from unlearnkit.importance import Kernel
from unlearnkit_cpu_kernels.outer_squares import ConvolutionSquares, LinearSquares

__all__ = ["ConvolutionSquares", "LinearSquares", "unlearnkit_register_kernels"]


@hookimpl
def unlearnkit_register_kernels() -> Iterable[Kernel]:
    """Offer the kernels; none is compiled before the first layer that it is for."""
    return [LinearSquares(), ConvolutionSquares()]
