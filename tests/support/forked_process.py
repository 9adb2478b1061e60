"""Forked processes that start in milliseconds: for tests that kill hundreds of them."""

import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "restricted_command",
    "kill_at_every_operation",
    "kill_during_work",
    "overwrite_and_kill",
    "sharded_model_tasks",
    "rank_tasks",
]


def _serve():
    """Start the server of forks; before Python 3.13 it looks for modules to preload in PYTHONPATH alone."""
    here = Path(__file__).parent
    missing = [name for name in _PRELOADED if not (here / f"{name}.py").exists()]
    assert not missing, f"{missing}: the server of forks would skip them silently, and every process import torch anew"
    CONTEXT.set_forkserver_preload(_PRELOADED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def run(target, *arguments, kill_after=None, **options):
    """Call a function in another process.

    Args:
        target: A function of a module of its own.
        *arguments: Its arguments.
        kill_after: Seconds after which the process is killed; None lets it end.
        **options: Its keyword arguments.

    Returns:
        The exit code; minus the number of the signal that ended it.
    """
    _serve()
    process = CONTEXT.Process(target=target, args=arguments, kwargs=options)
    process.start()
    process.join(kill_after)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def run_all(target, arguments):
    """Call a function in several processes at once, and wait for all of them.

    Args:
        target: A function of a module of its own.
        arguments: The arguments of each process.
    """
    _serve()
    processes = [CONTEXT.Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
