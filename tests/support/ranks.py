"""What each of several processes does in the tests of distributed importances."""

import os
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from unlearnkit import CrossEntropy, DiagonalFisher
from unlearnkit.data import LabelledImages, loader
from unlearnkit.distributed import estimate_together
from unlearnkit.errors import UnlearnKitError


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).to(dtype).eval()


def batches(samples, dtype=torch.float64):
    made = torch.Generator().manual_seed(1)
    images = torch.randn(samples, 1, 6, 6, generator=made).to(dtype)
    labels = torch.randint(0, 4, (samples,), generator=made)
    labels[0] = 3
    return loader(LabelledImages(images=images, labels={"label": labels}, target="label"), batch_size=5)


def work(rank, size, folder, samples, case):
    """Estimate together, and write the result, or the error, to a file of the rank."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    model, data = network(), batches(samples)
    if case == "another model" and rank == size - 1:
        with torch.no_grad():
            model[0].bias.add_(1)
    if case == "a bad batch":
        data.dataset.images[6] = torch.nan  # in the second batch: rank 1's
    if case == "a list":
        data = list(data)
    if case == "killed" and rank == size - 1:
        os._exit(9)
    try:
        found = estimate_together(DiagonalFisher(), model, data, objective=CrossEntropy(), role="full")
        found.save(Path(folder) / f"{rank}.safetensors")
    except UnlearnKitError as error:
        (Path(folder) / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    if case != "killed":
        dist.barrier()
        dist.destroy_process_group()
