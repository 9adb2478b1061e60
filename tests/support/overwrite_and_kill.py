"""Overwrite a folder of results in a process of its own, which ends by SIGKILL at a chosen moment."""

import contextlib
import os
import signal
import sys
from unittest import mock

from torch import nn

from unlearnkit.reporting import RunRecord, write_result
from unlearnkit.unlearning.report import Report, TensorChange
from unlearnkit.utils import files
from unlearnkit.utils.errors import StoreError

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "ctypes.dlsym"}


def result(folder, number):
    """Write distinguishable results: a label, and weights that are all that number."""
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, float(number))
    changes = (TensorChange(name="weight", size=4, changed=number),)
    write_result(folder, model, RunRecord(label=str(number), report=Report(method="m", tensors=changes)), metadata={})


def overwrite(folder, kill_at, *, exchange):
    """Write results number 2 and die at that event; without exchange as on a file system that cannot do it."""
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if event in EVENTS and any(str(folder.parent) in str(a) or a == "renameat2" for a in arguments):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if not exchange:
        mock.patch.object(files, "_exchange", return_value=False).start()  # as on a system that this one is not
    sys.addaudithook(watch)
    result(folder, 2)


def hold_in_turns(folder, tries):
    """Take the lock of a folder again and again; dies where another process holds it too."""
    held = 0
    while held < tries:
        with contextlib.suppress(StoreError), files.locked_folder(folder):
            (folder / "held").touch(exist_ok=False)
            (folder / "held").unlink()
            held += 1
    (folder / f"done-{os.getpid()}").touch()
