"""What an edit costs against copying memory: ``python -m tests.benchmarks.edit``, or ``….fisher.update``.

Every variant applies selective synaptic dampening to the same weights, one after the other in each round, and is
undone between the rounds, unmeasured. The floor is a copy that moves 16 bytes per float32 weight, as an edit must:
three arrays read, one written. ``--stages`` measures the parts of `Unlearner.unlearn` instead, ``--fractions`` the edit
when it changes none, a few or half of the weights, and of that the pass over them: without what Python does around it.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import attrs
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from unlearnkit.unlearning.fused.device_passage import DevicePassage
from unlearnkit.unlearning.fused.passage import Passage
from unlearnkit.unlearning.fused.run import VARIABLE
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import ElementwiseUnlearner, Importance, UnlearningInputs, trainable
from unlearnkit.models.parameters import check_finite, digest
from unlearnkit.models.snapshot import ModelSnapshot

METHOD = SelectiveSynapticDampening(alpha=10.0, lam=1.0)


@final
@attrs.frozen(kw_only=True)
class Fading(ElementwiseUnlearner):
    """θ' = θ·exp(−F_f / F_r) where F_f > 10 F_r: a rule with something that only torch computes."""

    name = "fading"

    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        return torch.where(forget > 10 * reference, theta * torch.exp(-forget / reference), theta)


COUNTS = (97, 49_500)
CLOCK = [time.perf_counter]

Run = Callable[[], object]


def resnet() -> nn.Module:
    """Make the notebook's model: 11 million weights in 62 parameters."""
    return resnet18(num_classes=20)


def layers(weights: int) -> nn.Module:
    """Make a model of equal layers, about as many weights as said."""
    count = max(1, round(weights / 1e7))
    width = round((weights / count) ** 0.5)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(count)))


def importance(model: nn.Module, *, seed: int, count: int, scale: float) -> Importance:
    """Draw an importance whose values spread over decades, as real ones do."""
    generator = torch.Generator().manual_seed(seed)
    totals = {
        name: (torch.randn(p.shape, generator=generator).mul_(2).exp_() * (scale * count)).to(p.device)
        for name, p in trainable(model).items()
    }
    return Importance(totals=totals, count=count, samples=count)


# The variants: each returns what is measured and what undoes it


def ours(model: nn.Module, inputs: UnlearningInputs, *, how: str = "auto", method=METHOD) -> tuple[Run, Run]:
    state: dict[str, ModelSnapshot] = {}

    def run() -> None:
        os.environ[VARIABLE] = how
        state["guard"] = method._guard(model)
        method._edit(model, inputs, state["guard"])

    def undo() -> None:
        with torch.no_grad():
            state.pop("guard").journal.undo()

    return run, undo


def out_of_place(model: nn.Module, change: Callable[[Tensor, Tensor, Tensor], None], inputs: UnlearningInputs):
    """Make a variant that works on whole tensors and means."""
    kept = [p.detach().clone() for p in trainable(model).values()]

    def run() -> None:
        with torch.no_grad():
            f, r = inputs.forget.mean(), inputs.reference.mean()
            for name, p in trainable(model).items():
                change(p, f[name], r[name])

    def undo() -> None:
        with torch.no_grad():
            for p, before in zip(trainable(model).values(), kept, strict=True):
                p.copy_(before)

    return run, undo


def boolean_index(theta: Tensor, forget: Tensor, reference: Tensor) -> None:
    """Edit as the notebook does: select by a mask, gather, scatter."""
    mask = forget > METHOD.alpha * reference
    beta = (METHOD.lam * (reference[mask] / forget[mask])).clamp(max=1.0)
    theta[mask] = theta[mask] * beta


def whole_rule(theta: Tensor, forget: Tensor, reference: Tensor) -> None:
    """Apply the same rule to whole tensors, without a check, a count or a way back."""
    theta.copy_(METHOD.rule(theta, forget, reference))


def copies(inputs: UnlearningInputs) -> tuple[Run, Run]:
    """Move 16 bytes per weight: copy both importances into memory that is there already."""
    sources = [t for importance in (inputs.forget, inputs.reference) for t in importance.totals.values()]
    targets = [torch.zeros_like(t) for t in sources]

    def run() -> None:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)

    return run, lambda: None


def triad(model: nn.Module) -> tuple[Run, Run]:
    """Read two arrays and write one: 12 bytes per weight, the arithmetic of the STREAM benchmark."""
    a, b, c = ([torch.ones_like(p) for p in trainable(model).values()] for _ in range(3))

    def run() -> None:
        for x, y, z in zip(a, b, c, strict=True):
            torch.add(x, y, alpha=3.0, out=z)

    return run, lambda: None


def variants(model: nn.Module, inputs: UnlearningInputs) -> dict[str, tuple[Run, Run]]:
    return {
        "copy, 16 bytes": copies(inputs),
        "triad, 12 bytes": triad(model),
        "the edit, compiled": ours(model, inputs, how="compiled"),
        "the edit, by torch in pieces": ours(model, inputs, how="plain"),
        # On CUDA torch computes it, and compiled code does the rest: no error, so not "compiled".
        "a rule with exp, compiled": ours(model, inputs, how="auto", method=Fading()),
        "a rule with exp, by torch in pieces": ours(model, inputs, how="plain", method=Fading()),
        "the rule on whole tensors, none of that": out_of_place(model, whole_rule, inputs),
        "the notebook: boolean index": out_of_place(model, boolean_index, inputs),
    }


def fractions(model: nn.Module, inputs: UnlearningInputs) -> dict[str, tuple[Run, Run]]:
    """Choose α so that a share of the weights is selected, and λ so small that each of them changes."""
    f, r = inputs.forget.mean(), inputs.reference.mean()
    ratios = torch.cat([(f[name] / r[name]).flatten()[:1_000_000] for name in f])
    runs = {"copy, 16 bytes": copies(inputs)}
    for percent in (0, 1, 5, 50):
        alpha = float(ratios.kthvalue(max(1, int(len(ratios) * (100 - percent) / 100))).values) * (1 if percent else 2)
        method = attrs.evolve(METHOD, alpha=alpha, lam=alpha / 2)
        runs[f"the edit of {percent} %"] = ours(model, inputs, how="compiled", method=method)
    return runs


def stages(model: nn.Module, inputs: UnlearningInputs) -> dict[str, tuple[Run, Run]]:
    def check() -> None:
        for each in (inputs.forget, inputs.reference):
            each.check_values(who="benchmark")

    def nothing() -> None:
        pass

    return {
        "copy, 16 bytes": copies(inputs),
        "weights finite?": (lambda: check_finite(model, when=""), nothing),
        "digest, once before and once after": (lambda: (digest(model), digest(model)), nothing),
        "importances finite and ≥ 0?": (check, nothing),
        "the edit": ours(model, inputs),
        "a copy of the model (other methods only)": (lambda: ModelSnapshot(model), nothing),
        "unlearn(), all of it": (lambda: METHOD.unlearn(model, inputs), nothing),
    }


@contextmanager
def _timed(device: str, times: list[float]) -> Iterator[None]:
    if device != "cpu":
        torch.cuda.synchronize()  # what was done before, and is not measured, may still be going on
    start = CLOCK[0]()
    yield
    if device != "cpu":
        torch.cuda.synchronize()
    times.append(CLOCK[0]() - start)


@contextmanager
def _passes() -> Iterator[list[float]]:
    """Time every call of compiled code."""
    times: list[float] = []

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: object) -> Any:
            start = CLOCK[0]()
            result = call(*args)
            times.append(CLOCK[0]() - start)
            return result

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passage, "_call", timed(Passage._call))
        patch.setattr(DevicePassage, "run", timed(DevicePassage.run))
        yield times


def measure(runs: dict[str, tuple[Run, Run]], rounds: int, device: str, *, passes: bool) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, (run, undo) in runs.items():
            with _passes() as inside, _timed(device, taken := []):
                run()
            undo()
            if number:
                times.setdefault(name, []).extend(taken)
                if passes and inside:
                    times.setdefault(f"{name}: the pass alone", []).append(sum(inside))
    return times


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--weights", type=float, default=0, help="default: ResNet18's 11 million")
    parser.add_argument("--stages", action="store_true", help="the parts of unlearn() instead of other ways to edit")
    parser.add_argument("--fractions", action="store_true", help="the edit for several shares of changed weights")
    parser.add_argument("--threads", type=int, default=0, help="default: torch's")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, its own CPU time: for a busy machine")
    args = parser.parse_args(given)
    if args.cpu_time:
        torch.set_num_threads(1)
        CLOCK[0] = time.thread_time
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = (layers(int(args.weights)) if args.weights else resnet()).to(args.device)
    inputs = UnlearningInputs(
        forget=importance(model, seed=1, count=COUNTS[0], scale=0.1),
        reference=importance(model, seed=2, count=COUNTS[1], scale=1.0),
    )
    size = sum(p.numel() for p in trainable(model).values())
    selected = METHOD._edit(model, inputs, guard := METHOD._guard(model)).changed
    with torch.no_grad():
        guard.journal.undo()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, device {args.device}; "
        f"{size / 1e6:.1f} M weights, {100 * sum(selected.values()) / size:.2g} % selected, "
        f"journal {guard.journal.nbytes / size:.2g} bytes a weight"
    )
    rows = stages if args.stages else fractions if args.fractions else variants
    times = measure(rows(model, inputs), args.rounds, args.device, passes=args.fractions)
    floor = times["copy, 16 bytes"]
    print("| what | ms | ns a weight | × copy of 16 bytes | share of copy bandwidth |\n|---|---|---|---|---|")
    for name, each in times.items():
        median = statistics.median(each)
        ratio = statistics.median(t / base for t, base in zip(each, floor, strict=True))
        print(
            f"| {name} | {median * 1e3:.1f} | {median / size * 1e9:.2f} | {ratio:.2f} | {100 / ratio:.0f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
