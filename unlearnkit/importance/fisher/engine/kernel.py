"""The contract of a kernel: a faster way to add the squared per-sample gradients of one kind of layer."""

import abc
import itertools
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, final

import attrs
import torch
from torch import Tensor

from unlearnkit.utils.errors import ConfigurationError, UnlearnKitWarning

_LOG = logging.getLogger(__name__)
_PLUGIN_FAULTS = (Exception,)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")

Layer = Literal["linear", "convolution"]
Finish = Callable[[Tensor], Tensor]
Region = tuple[tuple[slice, ...], tuple[slice, ...]]
"""Output positions that see a pixel through one kernel offset, and these pixels."""


@final
@attrs.frozen(kw_only=True, eq=False)
class SumBuffers:
    """The running sums that per-sample gradients are added to; all buffers have one shape.

    Attributes:
        squares: Σ_n g_n².
        absolute: Σ_n |g_n|, or None when it is not wanted.
        signed: Σ_n g_n, or None when it is not wanted.

    Examples:
        >>> import torch
        >>> sums = SumBuffers(squares=torch.zeros(2), signed=torch.zeros(2))
        >>> sums.add(torch.tensor([[1.0, 2.0], [-3.0, 0.0]]))
        >>> sums.squares.tolist(), sums.signed.tolist()
        ([10.0, 4.0], [-2.0, 2.0])
    """

    squares: Tensor
    absolute: Tensor | None = None
    signed: Tensor | None = None

    def __getitem__(self, part: int | slice) -> "SumBuffers":
        return self._each(lambda buffer: buffer[part])

    def view(self, shape: tuple[int, ...]) -> "SumBuffers":
        """Return views of the buffers in another shape, with as many elements."""
        return self._each(lambda buffer: buffer.view(shape))

    def _each(self, turn: Callable[[Tensor], Tensor]) -> "SumBuffers":
        absolute, signed = (None if buffer is None else turn(buffer) for buffer in (self.absolute, self.signed))
        return SumBuffers(squares=turn(self.squares), absolute=absolute, signed=signed)

    def add(self, several: Tensor, *, overwrite: bool = False) -> None:
        """Add the gradients of n samples, shape (n, *buffer shape); ``overwrite``: they may be squared in place."""
        if self.signed is not None:
            self.signed.add_(several.sum(0))
        if self.absolute is not None:
            self.absolute.add_(several.abs().sum(0))
        if several.is_cuda:
            self.squares.add_(squares_in_one_pass(several))
        else:
            self.squares.add_((several.square_() if overwrite else several.square()).sum(0))

    def add_one(self, one: Tensor) -> None:
        """Add the gradient of one sample, of the buffers' shape: cheaper than `add` for a large one."""
        self.squares.addcmul_(one, one)
        if self.absolute is not None:
            self.absolute.add_(one.abs())
        if self.signed is not None:
            self.signed.add_(one)


def squares_in_one_pass(several: Tensor) -> Tensor:
    """Return Σ_n g_n² in one reading: squaring first would read the tensor twice and write it once."""
    roots: Tensor = torch.linalg.vector_norm(several, dim=0)
    return roots.square_()


@final
@attrs.frozen(kw_only=True)
class ConvGeometry:
    """The sizes of a convolution, one entry per spatial dimension.

    Attributes:
        kernel: Kernel size.
        stride: Stride.
        padding: Zeros before and after each dimension.
        dilation: Dilation.
        groups: Groups of channels.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any(map(any, self.padding))

    @property
    def sides(self) -> list[int]:
        """The padding as `torch.nn.functional.pad` takes it: the last dimension first."""
        return [p for pair in reversed(self.padding) for p in pair]

    @property
    def pixelwise(self) -> bool:
        """Whether each window is one pixel and every pixel has one."""
        ones = (1,) * len(self.kernel)
        return self.kernel == ones == self.stride and not self.padded and self.groups == 1

    def regions(self, spatial: tuple[int, ...], positions: tuple[int, ...]) -> list[Region | None]:
        """Find for every kernel offset which output positions see a pixel through it, and which pixels.

        One `Region` for each offset, the last dimension fastest; None where all positions see padding. ``spatial`` is
        the size of the input without padding, ``positions`` that of the output.

        Examples:
            >>> three = ConvGeometry(kernel=(3,), stride=(1,), padding=((1, 1),), dilation=(1,), groups=1)
            >>> three.regions((4,), (4,))[0]
            ((slice(1, 4, None),), (slice(0, 3, 1),))
        """
        axes = [
            [_overlap(offset * dilation - before, stride, count, size) for offset in range(length)]
            for length, stride, dilation, (before, _), count, size in zip(
                self.kernel, self.stride, self.dilation, self.padding, positions, spatial, strict=True
            )
        ]
        found: list[Region | None] = []
        for chosen in itertools.product(*axes):
            known = [pair for pair in chosen if pair is not None]
            complete = len(known) == len(chosen)
            found.append((tuple(o for o, _ in known), tuple(i for _, i in known)) if complete else None)
        return found


def _overlap(shift: int, stride: int, count: int, size: int) -> tuple[slice, slice] | None:
    """Return the p with 0 ≤ stride·p + shift < size, and those pixels."""
    first = max(0, -(shift // stride))
    last = min(count - 1, (size - 1 - shift) // stride)
    if first > last:
        return None
    return slice(first, last + 1), slice(stride * first + shift, stride * last + shift + 1, stride)


@final
@attrs.frozen(kw_only=True, eq=False)
class KernelOperands:
    """What the weight gradient of one layer is made of; k rows belong to each of n samples.

    Attributes:
        layer: Which kind.
        g: Gradient of the output: ``linear`` (n, k, O); else (n, k, O, …), channels first.
        x: Input: ``linear`` (n, k, I); else (n, k, C, …).
        options: Of a ``convolution``: its `ConvGeometry`.
    """

    layer: Layer
    g: Tensor
    x: Tensor
    options: Any = None


@final
@attrs.frozen(kw_only=True, eq=False)
class KernelPlan:
    """How to add one layer's per-sample gradients.

    Attributes:
        name: Of the layout of the buffers.
        shape: Of each buffer; like ``finish``, it may depend on the weight's shape but not on the batch.
        run: Adds to the buffers; called at most once.
        finish: Turns a buffer into the weight's shape, or one that reshapes to it.
        squares_only: Whether ``run`` leaves ``absolute`` and ``signed`` alone; it is not called when these are wanted.
    """

    name: str
    shape: tuple[int, ...]
    run: Callable[[SumBuffers], None]
    finish: Finish = lambda buffer: buffer
    squares_only: bool = False


class Kernel(abc.ABC):
    """A faster way to add Σ_n g_n² for one kind of layer, where g_n is the gradient of sample n's loss.

    Offer objects of it by the hook ``unlearnkit_register_kernels``, and check them with
    `unlearnkit.testing.check_kernel`: sums must equal those of torch operations up to rounding. A kernel that raises is
    left out with one warning, and the layer goes by torch operations.

    Examples:
        >>> class OneProduct(Kernel):
        ...     name = "one-product"
        ...     layer = "linear"
        ...     def plan(self, operands):
        ...         g, x = operands.g, operands.x
        ...         if g.shape[1] > 1 or not g.is_cuda:
        ...             return None
        ...         run = lambda sums: sums.squares.addmm_(g[:, 0].square().t(), x[:, 0].square())
        ...         return KernelPlan(name=self.name, shape=(g.shape[2], x.shape[2]), run=run, squares_only=True)
        >>> OneProduct().plan(KernelOperands(layer="linear", g=torch.ones(2, 1, 3), x=torch.ones(2, 1, 4))) is None
        True
    """

    name: ClassVar[str]
    layer: ClassVar[Layer]

    @abc.abstractmethod
    def plan(self, operands: KernelOperands) -> KernelPlan | None:
        """Say how to add the gradients of one layer.

        Args:
            operands: In the dtype of the totals, on the model's device, with any strides.

        Returns:
            The plan, or None for sizes, dtypes or devices that the kernel is not for.

        Raises:
            KernelUnavailableError: The kernel cannot be used on this machine; logged, not warned about.
        """


@final
class KernelUnavailableError(ConfigurationError):
    """A kernel cannot be used on this machine; torch operations go on without a warning."""


@final
class KernelFailedError(Exception):
    """A kernel failed after it may have added a part of its sums."""


_left_out: dict[int, tuple[Kernel, Exception]] = {}
_said: set[tuple[str, str]] = set()


@final
class KernelSet:
    """The kernels of plugins, without those that failed before in this process."""

    def __init__(self, kernels: Iterable[tuple[Kernel, str]], *, required: bool = False) -> None:
        self._kernels, self._required = tuple(kernels), required
        if required and not self._kernels:
            raise ConfigurationError(
                "kernels='compiled': expected a plugin that offers kernels, saw none: install one, or take it out of "
                "UNLEARNKIT_DISABLE_PLUGINS"
            )

    def add(self, operands: KernelOperands, into: Callable[..., SumBuffers], *, squares_only: bool) -> bool:
        """Add a layer's gradients by the first kernel that takes it; False when none does."""
        for kernel, origin in self._kernels:
            if kernel.layer != operands.layer:
                continue
            if id(kernel) in _left_out:
                self._demand(kernel, origin, _left_out[id(kernel)][1])
                continue
            try:
                plan = kernel.plan(operands)
            except _PLUGIN_FAULTS as error:
                self._leave_out(kernel, origin, error)
                continue
            if plan is None or (plan.squares_only and not squares_only):
                continue
            sums = into(f"{kernel.name}: {plan.name}", plan.shape, plan.finish)
            try:
                plan.run(sums)
            except _PLUGIN_FAULTS as error:
                self._leave_out(kernel, origin, error)
                raise KernelFailedError(f"the kernel {kernel.name} ({origin}) failed: {error}") from error
            return True
        return False

    def _demand(self, kernel: Kernel, origin: str, error: Exception) -> None:
        if self._required:
            raise ConfigurationError(
                f"kernels='compiled': the kernel {kernel.name} ({origin}) cannot be used: {error}"
            ) from error

    def _leave_out(self, kernel: Kernel, origin: str, error: Exception) -> None:
        if out_of_memory(error):
            raise error
        _left_out[id(kernel)] = (kernel, error)
        self._demand(kernel, origin, error)
        if (origin, str(error)) in _said:
            return
        _said.add((origin, str(error)))
        said = f"going on with torch operations instead of the kernel {kernel.name} ({origin}): {error}"
        if isinstance(error, KernelUnavailableError):
            _LOG.info(said)
        else:
            warnings.warn(said, UnlearnKitWarning, stacklevel=2)


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _OUT_OF_MEMORY)
