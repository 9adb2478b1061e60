"""Where the engine finds the kernels of plugins; torch-free, so that `import unlearnkit` can set it.

Imports point left, so `importance` cannot ask `plugins`. `unlearnkit/__init__.py` sets the source instead.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

Source = Callable[[], Iterable[tuple[Any, str]]]
"""Returns each kernel with the plugin and distribution that it comes from."""

_sources: list[Source] = []


def set_kernel_source(source: Source) -> None:
    """Set the function that finds the kernels of plugins; it is called by the first estimate, not before."""
    _sources[:] = [source]
    plugin_kernels.cache_clear()


@functools.cache
def plugin_kernels() -> tuple[tuple[Any, str], ...]:
    """Return the kernels of plugins, each with its origin; looked up once, and after a plugin is registered."""
    return tuple(pair for source in _sources for pair in source())
