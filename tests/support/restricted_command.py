"""Runs the command in a process that cannot write to a folder or grow files."""

import errno
import os
import resource
import sys
from pathlib import Path

import sklearn.datasets  # noqa: F401 - what commands import when they are called: once here, not in every fork
import torch
import torchvision  # noqa: F401
from typer.testing import CliRunner

import unlearnkit.reporting.page  # noqa: F401
from unlearnkit.cli.app import app

CliRunner().invoke(app, ["methods"])  # loads plugins and option parsers: once here, not in every fork

FORGET, VERIFY = ("forget", "ledger.toml", "-q"), ("verify-receipts", "ledger.toml")
ROLLBACK, RUN = ("rollback", "ledger.toml", "-q"), ("run", "ledger.toml", "-q")
GO_ON = ("ledger", "ledger.toml", "-q", "--set", "deletion.folder='half'")
PASS = ("importance.checkpoint='pass'", "importance.every=2")
RESUME = (*RUN, *(word for setting in PASS for word in ("--set", setting)))
APPLY, INSPECT = ("patch", "apply", "edit", "original.safetensors", "new"), ("patch", "inspect", "edit")
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate"}


def command(arguments, folder, log, *, read_only=False, largest=None):
    """Run the command, with its output in a log, and exit with its code.

    Args:
        arguments: Of the command.
        folder: Where to call it.
        log: A file outside of the folder.
        read_only: Refuse to write anything in the folder, as the system does for one that is mounted read-only; not by
            permissions, which do not stop root.
        largest: Bytes that no file may grow beyond: as a full disk, but for the number of the error.
    """
    torch.set_num_threads(1)  # threads of several processes would compete for the cores
    os.fsync = lambda _: None  # written data survive a killed process without it
    os.chdir(folder)
    out = os.open(log, os.O_CREAT | os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if read_only:
        sys.addaudithook(lambda event, args: _refuse(event, args, Path(folder)))
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    app(list(arguments))


def _refuse(event, arguments, folder):
    writes = event in WRITES
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        flags = arguments[2]
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    if writes and any(_inside(argument, folder) for argument in arguments if isinstance(argument, str | os.PathLike)):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))


def _inside(argument, folder):
    try:
        return Path(argument).resolve().is_relative_to(folder)
    except OSError:
        return False


def everything(folder):
    """All bytes of a folder, without the locks."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_dir() or path.read_bytes()
        for path in folder.rglob("*")
        if path.name != "lock"
    }
