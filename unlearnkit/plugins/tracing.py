"""Show every call of a hook: which plugin, which hook, how long."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

TRACE = "UNLEARNKIT_TRACE_HOOKS"
"""Environment variable: ``1`` prints a line on the error stream for each call of a hook of a plugin."""


def traced(call: Callable[[], Any], *, hook: str, plugin: str, origin: str) -> Callable[[], Any]:
    """Wrap the call of a hook so that it is shown, when the environment variable asks for it."""
    if os.environ.get(TRACE, "") in {"", "0"}:
        return call

    def shown() -> Any:
        start, outcome = time.perf_counter(), ""
        try:
            return call()
        except BaseException as error:
            outcome = f", raised {type(error).__name__}"
            raise
        finally:
            seconds = time.perf_counter() - start
            sys.stderr.write(f"[trace] {hook} of plugin {plugin!r} ({origin}): {seconds:.4f} s{outcome}\n")

    return shown
