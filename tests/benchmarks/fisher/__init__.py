"""Times the exact diagonal Fisher against a plain pass and other libraries: ``python -m tests.benchmarks.fisher``.

Variants are interleaved within each round, so a busy machine slows all of them. The figure is the median over rounds of
the ratio to the plain pass of the same round. Peak memory (``--memory``) is how much a fresh process for each variant
grows beyond its size before the first pass, and the ratio to that of a plain pass.

On a GPU (``--device cuda``, without ``--case``) it prints the figures of `tests.benchmarks.fisher.device` instead.

The complete table of ``docs/results/performance.md``: ``python -m tests.benchmarks.fisher --memory``, on a busy machine
with ``--cpu-time``.
"""

import argparse
import importlib.util
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks.fisher import device
from tests.benchmarks.fisher.language import GPT, draw, gpt
from unlearnkit import CrossEntropy, DiagonalFisher
from unlearnkit.importance.fisher.engine.per_sample_fallback import SquaredGradients

Run = Callable[[], object]
Made = tuple[nn.Module, tuple[int, ...]]
CLASSES = 100


def resnet(side: int) -> Made:
    from torchvision.models import resnet18

    return resnet18(num_classes=CLASSES), (3, side, side)


def vit() -> Made:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(64, 8, 6, 6, 384, 1536, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision initialises it to zero, which blocks the gradients
    return model, (3, 64, 64)


def mlp() -> Made:
    layers = [
        nn.Flatten(),
        nn.Linear(3072, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, CLASSES),
    ]
    return nn.Sequential(*layers), (3, 32, 32)


class Sequences(nn.Module):
    """An LSTM and a linear layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(256, 256, batch_first=True), nn.Linear(256, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def lstm() -> Made:
    return Sequences(), (50, 256)


CASES: dict[str, tuple[Callable[[], Made], int]] = {
    "resnet18@64 B=32": (lambda: resnet(64), 32),
    "resnet18@64 B=32 channels-last": (lambda: resnet(64), 32),
    "resnet18@64 B=64": (lambda: resnet(64), 64),
    "resnet18@224 B=8": (lambda: resnet(224), 8),
    "resnet18@224 B=8 channels-last": (lambda: resnet(224), 8),
    "vit B=32": (vit, 32),
    "mlp B=128": (mlp, 128),
    "lstm, 50 steps, B=32": (lstm, 32),
    "gpt, 64 tokens, B=16": (gpt, 16),
}


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    weights = list(model.parameters())
    return lambda: torch.autograd.grad(F.cross_entropy(model(x), y), weights)


def kept(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    """A plain pass that accumulates its gradients, as the other variants accumulate their totals."""
    return lambda: F.cross_entropy(model(x), y).backward()


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


def fixed(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    return ours(model, x, y, kernels="fixed")


def _adding(model: nn.Module) -> Callable[[str, Tensor], None]:
    totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def receive(name: str, g: Tensor) -> None:
        totals[name].add_(g.square().sum(0))

    return receive


def one_at_a_time(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    squares = SquaredGradients(model, CrossEntropy())
    return lambda: squares.each((x, y), _adding(model))


def vmap(chunk: int) -> Callable[[nn.Module, Tensor, Tensor], Run]:
    def make(model: nn.Module, x: Tensor, y: Tensor) -> Run:
        squares = SquaredGradients(model, CrossEntropy(), chunk=chunk)
        return lambda: squares.add((x, y), _adding(model))

    return make


def backpack(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    from backpack import backpack as recording
    from backpack import extend
    from backpack.extensions import SumGradSquared

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # its hooks do not support in-place operations
    extended, loss = extend(model, use_converter=True), extend(nn.CrossEntropyLoss(reduction="sum"))

    def run() -> None:
        with recording(SumGradSquared()):
            loss(extended(x), y).backward()

    return run


def opacus(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model, loss_reduction="sum").train()  # it hooks no layer in eval mode
    totals = [torch.zeros_like(p) for p in wrapped.parameters()]

    def run() -> None:
        F.cross_entropy(wrapped(x), y, reduction="sum").backward()
        for total, p in zip(totals, wrapped.parameters(), strict=True):
            total.add_(p.grad_sample.square().sum(0))
        wrapped.zero_grad()

    return run


def nngeometry(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object.pspace import PMatDiag
    from torch.utils.data import DataLoader, TensorDataset

    def losses(batch: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(model(batch), labels, reduction="none")
        return loss.reshape(len(loss), -1).sum(1, keepdim=True)

    layers = LayerCollection.from_model(model)
    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))

    def run() -> None:
        generator = TorchHooksJacobianBackend(layer_collection=layers, model=model, function=losses)
        PMatDiag(generator=generator, examples=loader)

    return run


VARIANTS: dict[str, Callable[[nn.Module, Tensor, Tensor], Run]] = {
    "plain": plain,
    "plain, gradients kept": kept,
    "notebook (another quantity)": notebook,
    "unlearnkit": ours,
    "unlearnkit, kernels fixed": fixed,
    "one at a time": one_at_a_time,
    "vmap, chunk 8": vmap(8),
    "vmap, chunk 16": vmap(16),
    "backpack": backpack,
    "opacus": opacus,
    "nngeometry": nngeometry,
}
CLOCK = [time.perf_counter]
PEERS = ("backpack", "opacus", "nngeometry")
QUICK = (
    "plain",
    "plain, gradients kept",
    "notebook (another quantity)",
    "unlearnkit",
    "unlearnkit, kernels fixed",
)

GROWING = ("plain", "plain, gradients kept", "unlearnkit")


def prepared(case: str, variant: str, device: str) -> Run:
    make, batch = CASES[case]
    torch.manual_seed(0)
    model, shape = make()
    if isinstance(model, GPT):
        x, y = draw(batch, device)
    else:
        x, y = torch.randn(batch, *shape, device=device), torch.randint(0, CLASSES, (batch,), device=device)
    model = model.eval().to(device)
    if "channels-last" in case:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    return VARIANTS[variant](model, x, y)


def ready(case: str, variants: Iterable[str], device: str) -> dict[str, Run]:
    """Prepare the variants and run each once; libraries that do not support the model are reported and skipped."""
    runs = {}
    for name in variants:
        try:
            run = prepared(case, name, device)
            run()
        except Exception as error:
            if name not in PEERS:
                raise
            print(f"{case}: {name} left out, {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}")
        else:
            runs[name] = run
    return runs


def seconds(run: Run, device: str) -> float:
    start = CLOCK[0]()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return CLOCK[0]() - start


def ratios(runs: dict[str, Run], rounds: int, device: str) -> dict[str, tuple[float, float]]:
    """Return for each variant the median seconds and the median ratio to the plain pass of the same round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    base = times["plain"]
    return {
        name: (statistics.median(t), statistics.median(a / b for a, b in zip(t, base, strict=True)))
        for name, t in times.items()
    }


def resident_kib(field: str) -> int:
    """Read a figure of this process from Linux: ``VmRSS`` now, ``VmHWM`` at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def growth_mib(case: str, variant: str, device: str, threads: int) -> tuple[float, float]:
    """Return how much two passes raise the peak of this process, and how much of that is mapped files, in MiB.

    The files are pages of torch's libraries that were not loaded before; processes share them. A process inherits the
    peak of its parent, so the peak is reset first.
    """
    torch.set_num_threads(threads)
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    small(torch.randn(2, 3, 8, 8)).sum().backward()  # libraries that torch loads on first use do not count
    run = prepared(case, variant, device)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    idle, files = resident_kib("VmRSS"), resident_kib("RssFile")
    run()
    run()
    return (resident_kib("VmHWM") - idle) / 1024, (resident_kib("RssFile") - files) / 1024


def peak_mib(case: str, variant: str, device: str) -> tuple[float, float]:
    """Measure `growth_mib` in a fresh process."""
    call = f"fisher.growth_mib({case!r}, {variant!r}, {device!r}, {torch.get_num_threads()})"
    code = f"from tests.benchmarks import fisher\nprint(*{call})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    growth, files = map(float, done.stdout.split()[-2:])
    return growth, files


def growth_table(case: str, variants: Iterable[str], args: argparse.Namespace) -> None:
    """Print the growth of each variant: the median and the range over fresh processes."""
    base = 0.0
    for name in variants:
        peaks, files = zip(*(peak_mib(case, name, args.device) for _ in range(args.rounds)), strict=True)
        middle = statistics.median(peaks)
        base = base or middle
        spread, library = f"{min(peaks):.0f} to {max(peaks):.0f}", statistics.median(files)
        print(f"| {case} | {name} | {middle:.0f} | {spread} | {library:.0f} | {middle / base:.2f} |", flush=True)


def table(case: str, runs: dict[str, Run], args: argparse.Namespace) -> None:
    """Print the rows of one model."""
    base = 0.0
    for name, (median, ratio) in ratios(runs, args.rounds, args.device).items():
        row = f"| {case} | {name} | {median * 1e3:.0f} | {ratio:.2f} |"
        if args.memory:
            peak, _ = peak_mib(case, name, args.device)
            base = base or peak
            row += f" {peak:.0f} | {peak / base:.2f} |"
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated; default: all")
    parser.add_argument("--quick", action="store_true", help="skip the slow alternatives and other libraries")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too (CPU, on Linux)")
    parser.add_argument(
        "--growth", action="store_true", help="only peak memory, in --rounds processes; nothing is timed"
    )
    parser.add_argument("--cpu-time", action="store_true", help="one thread, its own CPU time: for a busy machine")
    parser.add_argument("--figures", action="store_true", help="the figures for a GPU; the default on one")
    parser.add_argument("--side", type=int, default=224, help="of --figures: pixels")
    parser.add_argument("--batch", type=int, default=256, help="of --figures: images")
    parser.add_argument("--images", type=int, default=49_500, help="of --figures: images in all")
    parser.add_argument("--weights", type=float, default=1e8, help="of --figures: in the larger edit")
    args = parser.parse_args()
    if args.figures or (args.device != "cpu" and not args.case):
        device.report(args)
        return
    if args.cpu_time:
        torch.set_num_threads(1)
        CLOCK[0] = time.thread_time
    clock = "CPU time" if args.cpu_time else "wall clock"
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {clock}, {platform.machine()}, "
        f"device {args.device}, {args.rounds} rounds"
    )
    variants = list(QUICK if args.quick else VARIANTS)
    for peer in PEERS:
        if peer in variants and importlib.util.find_spec(peer) is None:
            print(f"{peer}: not installed, left out")
            variants.remove(peer)
    if args.growth:
        print("| model | variant | MiB | range | of libraries | × plain |\n|---|---|---|---|---|---|")
        for case in args.case or CASES:
            growth_table(case, GROWING, args)
        return
    print("| model | variant | ms | × plain |" + (" MiB | × plain |" if args.memory else ""))
    print("|---|---|---|---|" + ("---|---|" if args.memory else ""))
    for case in args.case or CASES:
        table(case, ready(case, variants, args.device), args)
