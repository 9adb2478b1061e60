"""Progress bars, on terminals and in notebooks."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""Wraps an iterable, like tqdm: ``progress(items, description, total)`` yields the same items."""

SWITCH = "UNLEARNKIT_PROGRESS"
"""Environment variable: ``0`` shows no progress bars."""

_DELAY = 0.5  # seconds before a bar appears: short stages show none


def progress_of(progress: Progress | bool) -> Progress:
    """Return what shows bars: `bar` for True, `silent` for False, anything else as it is."""
    if isinstance(progress, bool):
        return bar if progress else silent
    return progress


def silent(items: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:  # noqa: ARG001
    """Show nothing."""
    return items


def bar(items: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:
    """Show a bar on stderr if it is a terminal, or in a notebook; under torchrun in its first process only."""
    notebook = in_notebook()
    if os.environ.get(SWITCH) == "0" or os.environ.get("RANK", "0") != "0" or not (notebook or _is_terminal()):
        return items
    if notebook and importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm  # noqa: PLC0415 - draws with widgets
    else:
        from tqdm import tqdm  # noqa: PLC0415 - only where a bar is shown
    shown: Iterable[Any] = tqdm(items, desc=what, total=total, leave=False, delay=_DELAY, dynamic_ncols=True)
    return shown


def in_notebook() -> bool:
    """Say whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def length(items: Iterable[Any]) -> int | None:
    """Return the number of items, or None for an iterator."""
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None
