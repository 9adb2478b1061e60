"""Runs a program as one of several processes, as torchrun does."""

import contextlib
import os
import runpy
import warnings
from pathlib import Path

import torch
import torch.distributed as dist


def run_as_rank(rank, size, folder, program):
    """Run a program of a folder in that folder; what it prints is written to a file of the rank."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.chdir(folder)
    store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False) if rank == 0 else None
    port = Path("port")
    if store is not None:
        port.with_suffix(".new").write_text(str(store.port))
        port.with_suffix(".new").rename(port)
    while not port.exists():
        pass
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_PORT": port.read_text(), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with Path(f"{rank}.txt").open("w") as file, contextlib.redirect_stdout(file):
        runpy.run_path(program, run_name="__main__")
