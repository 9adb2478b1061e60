"""Times an elementwise edit against boolean indexing: ``python -m tests.benchmarks.edit``.

Every variant applies selective synaptic dampening to the same weights, interleaved within each round; edits are undone
outside the measured time. Boolean indexing is the edit of the published code and of the notebook: no check, no count,
no undo, and importances that are already means. ``--stages`` measures the parts of `Unlearner.unlearn`.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import Importance, UnlearningInputs
from unlearnkit.models import trainable
from unlearnkit.models.parameters import check_finite, digest
from unlearnkit.models.snapshot import ModelSnapshot, UndoLog

METHOD = SelectiveSynapticDampening(alpha=10.0, lam=1.0)
COUNTS = (97, 49_500)
EDIT = "the edit"

Run = Callable[[], object]


def layers(weights: int) -> nn.Module:
    """Make a model of equal layers with about this many weights."""
    count = max(1, round(weights / 1e7))
    width = round((weights / count) ** 0.5)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(count)))


def importance(model: nn.Module, *, seed: int, count: int, scale: float) -> Importance:
    """Draw an importance whose values span orders of magnitude, like real ones."""
    generator = torch.Generator().manual_seed(seed)
    totals = {
        name: (torch.randn(p.shape, generator=generator).mul_(2).exp_() * (scale * count)).to(p.device)
        for name, p in trainable(model).items()
    }
    return Importance(totals=totals, count=count, samples=count)


# The variants: each returns the measured function and its undo


def ours(model: nn.Module, inputs: UnlearningInputs) -> tuple[Run, Run]:
    """Edit as `Unlearner.unlearn` does: means, rule, comparison, count, check, undo log, writing."""
    state: dict[str, UndoLog] = {}

    def run() -> None:
        state["log"] = ModelSnapshot(model, copies=False).undo_log
        METHOD._edit(model, inputs, state["log"])

    return run, lambda: state.pop("log").undo()


def on_tensors(
    model: nn.Module, inputs: UnlearningInputs, change: Callable[[Tensor, Tensor, Tensor], None]
) -> tuple[Run, Run]:
    """Change each parameter in place, given the means of its importances."""
    weights = {name: p.data for name, p in trainable(model).items()}
    kept = {name: p.clone() for name, p in weights.items()}
    f, r = inputs.forget.mean(), inputs.reference.mean()

    def run() -> None:
        for name, p in weights.items():
            change(p, f[name], r[name])

    def undo() -> None:
        for name, p in weights.items():
            p.copy_(kept[name])

    return run, undo


def boolean_indexing(theta: Tensor, forget: Tensor, reference: Tensor) -> None:
    """Select by a mask, gather, scatter."""
    located = forget > METHOD.alpha * reference
    theta[located] *= (METHOD.lam * reference[located] / forget[located]).clamp(max=1.0)


def whole_rule(theta: Tensor, forget: Tensor, reference: Tensor) -> None:
    """Apply the rule to whole tensors."""
    theta.copy_(METHOD.rule(theta, forget, reference))


def copies(inputs: UnlearningInputs) -> tuple[Run, Run]:
    """Move 16 bytes per weight, the least that an edit moves: copy both importances into existing buffers."""
    sources = [t for importance in (inputs.forget, inputs.reference) for t in importance.totals.values()]
    targets = [torch.zeros_like(t) for t in sources]

    def run() -> None:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)

    return run, lambda: None


def variants(model: nn.Module, inputs: UnlearningInputs) -> dict[str, tuple[Run, Run]]:
    return {
        EDIT: ours(model, inputs),
        "boolean indexing": on_tensors(model, inputs, boolean_indexing),
        "the rule on whole tensors": on_tensors(model, inputs, whole_rule),
        "copy, 16 bytes a weight": copies(inputs),
    }


def stages(model: nn.Module, inputs: UnlearningInputs) -> dict[str, tuple[Run, Run]]:
    def check() -> None:
        for each in (inputs.forget, inputs.reference):
            each.check_values(who="benchmark")

    def nothing() -> None:
        pass

    return {
        EDIT: ours(model, inputs),
        "weights finite?": (lambda: check_finite(model, when=""), nothing),
        "digest, once before and once after": (lambda: (digest(model), digest(model)), nothing),
        "importances finite and ≥ 0?": (check, nothing),
        "a copy of the model (other methods only)": (lambda: ModelSnapshot(model), nothing),
        "unlearn(), all of it": (lambda: METHOD.unlearn(model, inputs), nothing),
    }


@contextmanager
def _timed(device: str, clock: Callable[[], float], times: list[float]) -> Iterator[None]:
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    yield
    if device != "cpu":
        torch.cuda.synchronize()
    times.append(clock() - start)


def measure(
    runs: dict[str, tuple[Run, Run]], *, rounds: int, device: str, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Run all variants interleaved, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, (run, undo) in runs.items():
            with torch.no_grad():
                with _timed(device, clock, times[name] if number else []):
                    run()
                undo()
    return times


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--weights", type=float, default=0, help="default: ResNet18, 11 million in 62 parameters")
    parser.add_argument("--stages", action="store_true", help="the parts of unlearn() instead of other ways to edit")
    parser.add_argument("--threads", type=int, default=0, help="default: torch's")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, its own CPU time: for a busy machine")
    args = parser.parse_args(given)
    if args.threads or args.cpu_time:
        torch.set_num_threads(1 if args.cpu_time else args.threads)
    torch.manual_seed(0)
    model = (layers(int(args.weights)) if args.weights else resnet18(num_classes=20)).to(args.device)
    inputs = UnlearningInputs(
        forget=importance(model, seed=1, count=COUNTS[0], scale=0.1),
        reference=importance(model, seed=2, count=COUNTS[1], scale=1.0),
    )
    size = sum(p.numel() for p in trainable(model).values())
    counts = METHOD._edit(model, inputs, log := UndoLog())
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} cores, {platform.machine()}, device "
        f"{args.device}, {'CPU time' if args.cpu_time else 'wall clock'}; {size / 1e6:.1f} M weights, "
        f"{100 * sum(counts.changed.values()) / size:.2g} % change, undo log {log.nbytes / size:.2g} bytes a weight"
    )
    with torch.no_grad():
        log.undo()
    runs = (stages if args.stages else variants)(model, inputs)
    clock = time.thread_time if args.cpu_time else time.perf_counter
    times = measure(runs, rounds=args.rounds, device=args.device, clock=clock)
    print("| what | ms | ns a weight | × the edit |\n|---|---|---|---|")
    for name, each in times.items():
        median = statistics.median(each)
        ratio = statistics.median(t / edit for t, edit in zip(each, times[EDIT], strict=True))
        print(f"| {name} | {median * 1e3:.1f} | {median / size * 1e9:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
