"""Runs a task on several torch.distributed ranks of this machine."""

import pickle

from forked_process import run_all
from rank_tasks import enter


def run_on_ranks(folder, task, *arguments, size=2):
    """Do a task on every rank; return each result, error, or None where the rank was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    run_all(enter, [(rank, size, folder, task, *arguments) for rank in range(size)])
    written = [folder / f"{rank}.pickle" for rank in range(size)]
    return [pickle.loads(path.read_bytes()) if path.exists() else None for path in written]
