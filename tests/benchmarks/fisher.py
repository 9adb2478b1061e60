"""Times the exact diagonal Fisher against one plain pass and against others: ``python -m tests.benchmarks.fisher``.

Every variant runs once per round, in turn, so that a busy machine slows all of them; the figure is the median over
rounds of the ratio to the plain pass of the same round. Peak memory is measured in a fresh process per variant.
"""

import argparse
import importlib.util
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnkit import CrossEntropy, DiagonalFisher
from unlearnkit.fisher.general import SquaredGradients

Run = Callable[[], object]
CLASSES = 100


def resnet(side: int) -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import resnet18

    return resnet18(num_classes=CLASSES), (3, side, side)


def vit() -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(64, 8, 6, 6, 384, 1536, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision starts it at zero, and then nothing flows
    return model, (3, 64, 64)


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [
        nn.Flatten(),
        nn.Linear(3072, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, CLASSES),
    ]
    return nn.Sequential(*layers), (3, 32, 32)


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, tuple[int, ...]]], int]] = {
    "resnet18@64 B=32": (lambda: resnet(64), 32),
    "resnet18@64 B=64": (lambda: resnet(64), 64),
    "resnet18@224 B=8": (lambda: resnet(224), 8),
    "vit B=32": (vit, 32),
    "mlp B=128": (mlp, 128),
}


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    weights = list(model.parameters())
    return lambda: torch.autograd.grad(F.cross_entropy(model(x), y), weights)


def notebook(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    weights = list(model.parameters())
    totals = [torch.zeros_like(p) for p in weights]

    def run() -> None:
        for total, g in zip(totals, torch.autograd.grad(F.cross_entropy(model(x), y), weights), strict=True):
            total.addcmul_(g, g)

    return run


def ours(model: nn.Module, x: Tensor, y: Tensor, **options: str) -> Run:
    accumulator = DiagonalFisher(**options).accumulator(model, objective=CrossEntropy())
    return lambda: accumulator.add((x, y))


def timed(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    return ours(model, x, y, kernels="timed")


def one_at_a_time(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    squares = SquaredGradients(model, CrossEntropy())
    return lambda: squares.one_at_a_time((x, y))


def vmap(chunk: int) -> Callable[[nn.Module, Tensor, Tensor], Run]:
    def make(model: nn.Module, x: Tensor, y: Tensor) -> Run:
        squares = SquaredGradients(model, CrossEntropy(), chunk=chunk)
        return lambda: squares.vectorised((x, y))

    return make


def backpack(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    from backpack import backpack as recording
    from backpack import extend
    from backpack.extensions import SumGradSquared

    extended, loss = extend(model, use_converter=True), extend(nn.CrossEntropyLoss(reduction="sum"))

    def run() -> None:
        with recording(SumGradSquared()):
            loss(extended(x), y).backward()

    return run


def opacus(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model, loss_reduction="sum")
    totals = [torch.zeros_like(p) for p in wrapped.parameters()]

    def run() -> None:
        F.cross_entropy(wrapped(x), y, reduction="sum").backward()
        for total, p in zip(totals, wrapped.parameters(), strict=True):
            total.add_(p.grad_sample.square().sum(0))
        wrapped.zero_grad()

    return run


VARIANTS: dict[str, Callable[[nn.Module, Tensor, Tensor], Run]] = {
    "plain": plain,
    "notebook (another quantity)": notebook,
    "unlearnkit": ours,
    "unlearnkit, kernels timed": timed,
    "one at a time": one_at_a_time,
    "vmap, chunk 8": vmap(8),
    "vmap, chunk 16": vmap(16),
    "backpack": backpack,
    "opacus": opacus,
}
CLOCK = [time.perf_counter]
PEERS = ("backpack", "opacus")
QUICK = ("plain", "notebook (another quantity)", "unlearnkit", "unlearnkit, kernels timed")


def prepared(case: str, variant: str, device: str) -> Run:
    make, batch = CASES[case]
    torch.manual_seed(0)
    model, shape = make()
    x, y = torch.randn(batch, *shape, device=device), torch.randint(0, CLASSES, (batch,), device=device)
    return VARIANTS[variant](model.eval().to(device), x, y)


def seconds(run: Run, device: str) -> float:
    start = CLOCK[0]()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return CLOCK[0]() - start


def ratios(case: str, variants: list[str], rounds: int, device: str) -> dict[str, tuple[float, float]]:
    """Return for each variant the median seconds and the median ratio to the plain pass of the same round."""
    runs = {name: prepared(case, name, device) for name in variants}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    base = times["plain"]
    return {
        name: (statistics.median(t), statistics.median(a / b for a, b in zip(t, base, strict=True)))
        for name, t in times.items()
    }


def peak_mib(case: str, variant: str, device: str) -> float:
    """Return how much the process grows beyond an idle one, in MiB: two runs in a fresh process."""
    code = (
        "import resource\n"
        "from tests.benchmarks import fisher\n"
        f"run = fisher.prepared({case!r}, {variant!r}, {device!r})\n"
        "idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "run(); run()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    scale = 1 if sys.platform == "linux" else 1024
    return float(done.stdout.split()[-1]) / 1024 / scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated; default: all")
    parser.add_argument("--quick", action="store_true", help="leave out the slow alternatives and the peers")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too (CPU)")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, its own CPU time: for a busy machine")
    args = parser.parse_args()
    if args.cpu_time:
        torch.set_num_threads(1)
        CLOCK[0] = time.thread_time
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, device {args.device}")
    variants = list(QUICK if args.quick else VARIANTS)
    for peer in PEERS:
        if peer in variants and importlib.util.find_spec(peer) is None:
            print(f"{peer}: not installed, left out")
            variants.remove(peer)
    print("| model | variant | ms | × plain |" + (" MiB |" if args.memory else ""))
    print("|---|---|---|---|" + ("---|" if args.memory else ""))
    for case in args.case or CASES:
        for name, (median, ratio) in ratios(case, variants, args.rounds, args.device).items():
            row = f"| {case} | {name} | {median * 1e3:.0f} | {ratio:.2f} |"
            print(row + (f" {peak_mib(case, name, args.device):.0f} |" if args.memory else ""), flush=True)


if __name__ == "__main__":
    main()
