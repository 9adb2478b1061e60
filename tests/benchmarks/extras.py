"""Times what `fisher_statistics` adds to a pass of the Fisher: ``python -m tests.benchmarks.extras``.

CPU time of one thread, every variant once per round, in turn; the figure is the ratio of medians to a plain forward
and backward pass on the same batch. The first batch of each variant, which is probed, is not counted.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks.fisher import mlp, resnet
from unlearnkit import CrossEntropy, DiagonalFisher
from unlearnkit.fisher.diagonal import start

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 3


def small_vit() -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(64, 8, 4, 4, 128, 512, num_classes=10)
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model, (3, 64, 64)


def main() -> None:
    """Print one line for each model."""
    torch.set_num_threads(1)
    for name, make, size in (("mlp", mlp, 128), ("resnet18@64", lambda: resnet(64), 8), ("small vit", small_vit, 8)):
        torch.manual_seed(0)
        model, shape = make()
        runs = variants(model.eval(), torch.randn(size, *shape), torch.arange(size) % 10)
        times: dict[str, list[float]] = {kind: [] for kind in runs}
        for _ in range(ROUNDS):
            for kind, run in runs.items():
                begin = time.thread_time()
                run()
                times[kind].append(time.thread_time() - begin)
        medians = {kind: statistics.median(seen) for kind, seen in times.items()}
        print(f"{name} B={size}", {kind: round(t / medians["plain"], 2) for kind, t in medians.items()}, flush=True)


def variants(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Make the calls, each having seen one batch."""

    def plain() -> None:
        F.cross_entropy(model(x), y).backward()
        model.zero_grad(set_to_none=True)

    found: dict[str, Callable[[], None]] = {"plain": plain}
    for kind, keys, options in (
        ("fisher", (), {}),
        ("10 groups", y.tolist(), {}),
        ("gradient", (), {"gradient": True}),
        ("absolute", (), {"absolute": True}),
    ):
        run = start(DiagonalFisher(), model, objective=CrossEntropy(), **options)
        found[kind] = lambda run=run, keys=keys: run.add((x, y), keys)
        found[kind]()
    return found


if __name__ == "__main__":
    main()
