"""Runs compiled parts of a model as they were written: compiled code cannot be looked into."""

import sys
import threading
from typing import Any, final

import torch


@final
class Eager:
    """Makes `torch.compile` step aside while any thread is inside; the model itself is not touched.

    torch has one switch for all threads, so that the first to come turns it and the last to go turns it back. Compiled
    functions that run elsewhere meanwhile are slower and give the same results.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._switch: Any = None

    def __enter__(self) -> None:
        """Turn the switch, where anything can have been compiled at all."""
        with self._lock:
            if self._inside == 0 and "torch._dynamo" in sys.modules:
                self._switch = torch.compiler.set_stance("force_eager")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        """Turn it back."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._switch is not None:
                self._switch.__exit__(None, None, None)
                self._switch = None


EAGER = Eager()
