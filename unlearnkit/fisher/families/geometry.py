"""The sizes of a convolution."""

from typing import final

import attrs


@final
@attrs.frozen(kw_only=True)
class Geometry:
    """The sizes of a convolution, one per spatial dimension.

    Attributes:
        kernel: κ.
        stride: s.
        padding: Before and after.
        dilation: d.
        groups: How many.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def plain(self) -> bool:
        """Whether a window is one pixel and every pixel has one."""
        ones = (1,) * len(self.kernel)
        return self.kernel == ones == self.stride and not any(map(any, self.padding)) and self.groups == 1
