"""Reference implementation: one sample at a time in float64."""

import copy
import warnings

import attrs
import torch
from torch.nn import functional as F

from unlearnkit import CrossEntropy, DiagonalFisher, Objective
from unlearnkit.data.batches import map_tensors, take
from unlearnkit.importance.fisher.engine.kernel import SumBuffers

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@attrs.frozen
class SumOfSquares(Objective):
    """Half the squared output, with weights so that no gradient is uniform."""

    def losses(self, model, batch):
        y = model(*batch[:-1]).flatten(1)
        ramp = torch.linspace(0.5, 1.5, y.shape[1], dtype=y.dtype)
        return (0.5 * y.square() * ramp).sum(1) + (y * batch[-1].to(y.dtype).reshape(-1, 1)).sum(1)


def oracle(model, batches, objective=None):
    """Differentiate one sample at a time, in float64."""
    objective = objective or CrossEntropy()
    double = copy.deepcopy(model).double().eval()
    named = {n: p for n, p in double.named_parameters() if p.requires_grad}
    totals = {n: torch.zeros_like(p) for n, p in named.items()}
    for batch in batches:
        wide = map_tensors(batch, lambda t: t.double() if t.is_floating_point() else t)
        size = len(wide[0])
        for i in range(size):
            loss = objective.losses(double, take(wide, slice(i, i + 1))).sum()
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, g in zip(named, found, strict=True):
                if g is not None:
                    totals[name] += g.square()
    return totals


def estimate(model, batches, objective=None, **options):
    """The engine's totals."""
    estimator = DiagonalFisher(**options)
    return dict(estimator.estimate(model, batches, objective=objective or CrossEntropy()).totals)


def squares_added(hand_out, batch):
    """The squares of all gradients that a function of a batch and a receiver hands out."""
    totals = {}
    hand_out(batch, lambda name, g: totals.update({name: totals.get(name, 0) + g.square().sum(0)}))
    return totals


def distance(seen, expected):
    """The largest relative L1 difference over all parameters that are more than rounding error."""
    scale = max((float(t.mean()) for t in expected.values() if t.numel()), default=0.0)
    worst = 0.0
    for name, want in expected.items():
        assert seen[name].shape == want.shape, name
        if want.numel():
            floor = 1e-9 * scale * want.numel()
            difference = float((seen[name].double() - want).abs().sum())
            worst = max(worst, difference / (float(want.sum()) + floor) if float(want.sum()) + floor else difference)
    return worst


def engine_only(model, batches, objective=None, tolerance=1e-4, *, slow=False, **options):
    """Assert that the engine is exact without a fallback; ``slow`` allows one for functions without a rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="squares underflow")  # true of networks that are very sure
        if slow:
            warnings.filterwarnings("ignore", message="no rule for")
        seen = estimate(model, batches, objective, **options)
    assert distance(seen, oracle(model, batches, objective)) < tolerance
    return seen


def squares_of_each(geometry, w, x, g):
    """Σ_n of the squares of `weight_gradients_of_each`."""
    return weight_gradients_of_each(geometry, w, x, g).square().sum(0)


def weight_gradients_of_each(geometry, w, x, g):
    """∂/∂W Σ_k ⟨g_nk, conv(x_nk, W)⟩ for each n by autograd, one sample at a time, in float64."""
    found = []
    for x_n, g_n in zip(x.double(), g.double(), strict=True):
        leaf = w.double().requires_grad_()
        padding = tuple(p for p, _ in geometry.padding)
        y = CONVOLVE[len(geometry.kernel)](
            x_n, leaf, None, geometry.stride, padding, geometry.dilation, geometry.groups
        )
        found.append(torch.autograd.grad((y * g_n).sum(), leaf)[0])
    return torch.stack(found)


SUMS = {"squares": torch.square, "absolute": torch.abs, "signed": torch.clone}
"""The sums that a kernel may compute, and their per-sample terms."""


def check_plan(kernel, per_sample, *, tolerance=1e-5, dtype=torch.float32):
    """Run a kernel twice for each set of sums, and compare them with per-sample gradients."""
    able = ["squares"] if kernel.squares_only else ["squares", "absolute", "signed"]
    for wanted in ({"squares"}, {"squares", *able[1:2]}, {"squares", *able[2:]}, set(able)):
        into = SumBuffers(**{sum_: torch.zeros(kernel.shape, dtype=dtype) for sum_ in wanted})
        kernel.run(into)
        kernel.run(into)
        for sum_ in wanted:
            seen = kernel.finish(getattr(into, sum_)).reshape(per_sample.shape[1:])
            terms = SUMS[sum_](per_sample.double())
            wrong = (seen - 2 * terms.sum(0)).abs().max() if terms.numel() else 0.0
            assert wrong <= tolerance * 2 * terms.abs().sum(0).max(), (kernel.name, sum_)
