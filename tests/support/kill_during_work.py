"""Work on a ledger, or a comparison, in a process of its own that ends by SIGKILL at a chosen moment."""

import os
import signal
import sys
import warnings
from pathlib import Path

import torch

from unlearnkit.deletion import Deletion, purge, rollback
from unlearnkit.experiments import compare, run
from unlearnkit.experiments.config import load_config

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "os.truncate"}
REQUESTS = {"ticket-1": {"groups": ["3"]}, "ticket-2": {"samples": [4, 5, 6]}, "ticket-3": {"groups": ["8"]}}


def _die_at(folder, kill_at):
    """Die at that file-system event inside the folder, counted from 1; returns the list of events, which grows."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.fsync = lambda _: None  # written data survive a killed process without it
    seen = []

    def watch(event, arguments):
        if event in EVENTS and any(str(folder) in os.fspath(a) for a in arguments if isinstance(a, str | os.PathLike)):
            seen.append(event)
            if len(seen) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return seen


def work(config, folder, kill_at=None, counted=None, requests=tuple(REQUESTS), *, refresh=True):
    """Do everything that is not done yet; with kill_at, die at that file-system event inside the folder.

    Requests, then the last of them put back; then the importances are measured again, or else earlier models purged.
    """
    seen = _die_at(folder, kill_at)
    settings = [f"deletion.folder='{folder}'", "deletion.budget=0.3", "deletion.keep=2", "deletion.keep_as='patch'"]
    deletion = Deletion.load(load_config(config, settings))
    deletion.start()
    for name in requests:
        answered = {n for receipt in deletion.ledger.receipts() for n in receipt.requests}
        if name not in answered and name not in {request.name for request in deletion.ledger.queue.waiting()}:
            deletion.ask(name, **REQUESTS[name])
        deletion.work()
    outcomes = {receipt.outcome for receipt in deletion.ledger.receipts()}
    if "restored" not in outcomes:
        rollback(deletion)
    if refresh and "measured again" not in outcomes:
        deletion.refresh()
    if not refresh and "purged" not in outcomes:
        purge(deletion)
    if counted:
        Path(counted).write_text(str(len(seen)))


def compare_until_a_trial(config, number):
    """Run a comparison, and die in the middle of a trial of that number, counted from 1."""
    torch.set_num_threads(1)
    started = 0

    def watch(event):
        nonlocal started
        started += event.kind == "started"
        if started == number:
            os.kill(os.getpid(), signal.SIGKILL)

    compare(load_config(config), watch=watch)


def run_methods(config, settings, folder, kill_at=None, counted=None):
    """Run every method, as `work` does; writes how many events it saw to a file."""
    seen = _die_at(folder, kill_at)
    list(run(load_config(config, settings)))
    if counted:
        Path(counted).write_text(str(len(seen)))
