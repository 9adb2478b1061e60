"""The sizes of a convolution."""

from typing import final

import attrs


@final
@attrs.frozen(kw_only=True)
class Geometry:
    """The sizes of a convolution, one per spatial dimension."""

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
    def plain(self) -> bool:
        """Whether a window is one pixel and every pixel has one."""
        ones = (1,) * len(self.kernel)
        return self.kernel == ones == self.stride and not self.padded and self.groups == 1
