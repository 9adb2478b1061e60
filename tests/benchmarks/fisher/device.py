"""The figures for a GPU, in a few minutes of device time: ``python -m tests.benchmarks.fisher --device cuda``.

Three parts: a pass over ResNet18 at 224 pixels, batch 256, in bf16 and tf32, against a plain pass of the same
precision; the importance of 49,500 uint8 images in host memory; the edit against a copy in device memory. A small run
on a CPU tests the script: ``--figures --side 32 --batch 4 --images 10 --weights 1e5``.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks import edit
from unlearnkit import CrossEntropy, DiagonalFisher, Objective
from unlearnkit.data import DeviceTransform
from unlearnkit.data.batches import Deferred
from unlearnkit.importance.estimator import Accumulator
from unlearnkit.models.objective import Autocast, float32_products

CLASSES = 100
PRECISIONS: dict[str, Objective] = {"bf16": Autocast(), "tf32": CrossEntropy()}


@attrs.frozen(kw_only=True)
class Sizes:
    """Sizes of the measurements."""

    device: torch.device
    rounds: int
    side: int
    batch: int
    images: int
    weights: float

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()


def fishers() -> dict[str, DiagonalFisher]:
    """Engine configurations, the default first."""
    budgets = {f"memory_budget={mib}": DiagonalFisher(memory_budget=mib) for mib in (256, 1024)}
    return {"default": DiagonalFisher(), **budgets}


def resnet(sizes: Sizes, *, channels_last: bool) -> nn.Module:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=CLASSES).eval().to(sizes.device)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def plain(model: nn.Module, x: Tensor, y: Tensor, precision: str) -> None:
    """One forward and backward pass with the mean loss."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = F.cross_entropy(model(x), y)
    torch.autograd.grad(loss, list(model.parameters()))


def passes(sizes: Sizes, precision: str, *, channels_last: bool) -> None:
    """Print the rows of one precision and layout; variants are interleaved within each round."""
    model = resnet(sizes, channels_last=channels_last)
    x = torch.randn(sizes.batch, 3, sizes.side, sizes.side, device=sizes.device)
    x, y = x.to(memory_format=torch.channels_last) if channels_last else x, torch.arange(sizes.batch) % CLASSES
    y = y.to(sizes.device)
    pending: dict[str, Accumulator] = {
        name: fisher.accumulator(model, objective=PRECISIONS[precision]) for name, fisher in fishers().items()
    }
    runs: dict[str, Callable[[], object]] = {"plain": lambda: plain(model, x, y, precision)}
    runs |= {name: lambda run=run: run.add((x, y)) for name, run in pending.items()}  # type: ignore[misc]
    peaks = {name: _warmed(run, sizes) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(sizes.rounds):
        for name, run in runs.items():
            times[name].append(_seconds(run, sizes))
    totals = {name: run.result().totals for name, run in pending.items()}
    layout = "channels-last" if channels_last else "contiguous"
    for name, each in times.items():
        ratio = statistics.median(t / base for t, base in zip(each, times["plain"], strict=True))
        far = f"{_apart(totals[name], totals['default']):.1e}" if name in totals else ""
        median = statistics.median(each)
        print(
            f"| {precision} | {layout} | {name} | {median * 1e3:.1f} | {ratio:.2f} | {peaks[name]:.0f} | {far} |",
            flush=True,
        )


def _warmed(run: Callable[[], object], sizes: Sizes) -> float:
    """Run three times to warm up, and return how many MiB the next run raises the peak."""
    for _ in range(3):
        run()
    sizes.wait()
    if not sizes.gpu:
        return float("nan")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    sizes.wait()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _seconds(run: Callable[[], object], sizes: Sizes) -> float:
    sizes.wait()
    start = time.perf_counter()
    run()
    sizes.wait()
    return time.perf_counter() - start


def _apart(seen: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative difference of a parameter's totals, in sums of absolute values."""
    return max(float((seen[n] - t).abs().sum() / t.sum().clamp(min=1e-30)) for n, t in expected.items())


def images(sizes: Sizes) -> Iterator[tuple[Deferred, Tensor]]:
    """Yield batches of small uint8 images in host memory, to be resized and normalised on the device."""
    generator, finish = torch.Generator().manual_seed(0), DeviceTransform(image_size=sizes.side)
    for start in range(0, sizes.images, sizes.batch):
        size = min(sizes.batch, sizes.images - start)
        raw = torch.randint(256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
        yield Deferred(raw=raw, finish=finish), torch.randint(0, CLASSES, (size,), generator=generator)


def whole(sizes: Sizes, precision: str, name: str, fisher: DiagonalFisher) -> None:
    """Print how long `estimate` takes for all images."""
    model, data = resnet(sizes, channels_last=True), list(images(sizes))
    seconds = _seconds(lambda: fisher.estimate(model, data, objective=PRECISIONS[precision]), sizes)
    print(f"| {precision} | {name} | {sizes.images} | {seconds:.1f} | {sizes.images / seconds:.0f} |", flush=True)


def report(args: argparse.Namespace) -> None:
    """Print every table."""
    sizes = Sizes(
        device=torch.device(args.device),
        rounds=args.rounds,
        side=args.side,
        batch=args.batch,
        images=args.images,
        weights=args.weights,
    )
    if sizes.gpu:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # tf32 represents bfloat16 values exactly
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        print(torch.cuda.get_device_name(sizes.device), torch.version.cuda)
    print(f"{float32_products(sizes.device) or 'float32'}; ResNet18 at {sizes.side} px, batch {sizes.batch}\n")
    print("| precision | layout | variant | ms | × plain | MiB | totals apart |\n|---|---|---|---|---|---|---|")
    for precision in PRECISIONS:
        for channels_last in (True, False):
            passes(sizes, precision, channels_last=channels_last)
    print("\n| precision | variant | images | s | images a second |\n|---|---|---|---|---|")
    for precision in PRECISIONS:
        for name in [n for n in fishers() if "1024" not in n]:
            whole(sizes, precision, name, fishers()[name])
    for weights in (0.0, sizes.weights):
        print()
        edit.main(["--device", args.device, "--rounds", str(sizes.rounds), "--weights", str(weights)])
