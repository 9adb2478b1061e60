"""Downloads by other libraries, which wait in silence and without end."""

import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from unlearnkit.utils.errors import StoreError, UnlearnKitWarning

_PATIENCE = 10.0  # seconds until it is said what a download waits for
_SILENCE = 60.0  # seconds without a byte until a download has failed


@contextmanager
def downloading(what: str, url: str) -> Iterator[None]:
    """Say what the block waits for when it takes long, and end a download that receives nothing; a `StoreError`."""

    def say() -> None:
        warnings.warn(f"still waiting for {what} from {url}", UnlearnKitWarning, stacklevel=2)

    timer, before = threading.Timer(_PATIENCE, say), socket.getdefaulttimeout()
    timer.daemon = True
    socket.setdefaulttimeout(_SILENCE if before is None else before)
    timer.start()
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot get {what} from {url}: {error}: check the network, or copy the file from another machine"
        ) from error
    finally:
        timer.cancel()
        socket.setdefaulttimeout(before)
