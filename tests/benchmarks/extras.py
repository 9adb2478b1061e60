"""Times what `fisher_statistics` adds to a pass of the Fisher: ``python -m tests.benchmarks.extras``.

CPU time of one thread, variants interleaved within each round. Figures are ratios of medians to a plain forward and
backward pass on the same batch. The first batch of each variant, which includes the probe, is not counted.
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
from unlearnkit.importance.fisher.diagonal import start

CASES = {"mlp": (128,), "resnet18@64": (8, 32, 64), "small vit": (8, 32)}


def small_vit() -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(64, 8, 4, 4, 128, 512, num_classes=10)
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model, (3, 64, 64)


MODELS = {"mlp": mlp, "resnet18@64": lambda: resnet(64), "small vit": small_vit}


def main() -> None:
    """Print a table of ratios."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(1)
    header = False
    for name, size in ((name, size) for name, sizes in CASES.items() for size in sizes):
        torch.manual_seed(0)
        model, shape = MODELS[name]()
        medians = measure(variants(model.eval(), torch.randn(size, *shape), torch.arange(size) % 10), rounds)
        if not header:
            print(f"| model, batch | {' | '.join(medians)} |\n|{'---|' * (len(medians) + 1)}")
            header = True
        ratios = " | ".join(f"{t / medians['plain']:.2f}" for t in medians.values())
        print(f"| {name}, {size} | {ratios} |", flush=True)


def measure(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median CPU time of each, in seconds."""
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(rounds):
        for kind, run in runs.items():
            begin = time.thread_time()
            run()
            times[kind].append(time.thread_time() - begin)
    return {kind: statistics.median(seen) for kind, seen in times.items()}


def variants(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Return the variants, each after its first batch."""

    def plain() -> None:
        F.cross_entropy(model(x), y).backward()
        model.zero_grad(set_to_none=True)

    found: dict[str, Callable[[], None]] = {"plain": plain}
    for kind, keys, options in (
        ("fisher", (), {}),
        ("10 groups, batches sorted", [0] * len(y), {}),
        ("10 groups, mixed in each batch", y.tolist(), {}),
        ("gradient and batched", (), {"gradient": True}),
        ("Σ\\|g\\|", (), {"absolute": True}),
        ("gradient, batched and Σ\\|g\\|", (), {"gradient": True, "absolute": True}),
    ):
        groups = (lambda keys=keys: keys) if keys else None
        run = start(DiagonalFisher(), model, objective=CrossEntropy(), keys=groups, **options)
        found[kind] = lambda run=run: run.add((x, y))
        found[kind]()
    return found


if __name__ == "__main__":
    main()
