"""The table of unsupported cases in docs/explanation/exact-fisher.md: a test for each row."""

import functools
import re
import warnings
from pathlib import Path

import pytest
import torch
from fisher_oracle import SumOfSquares, distance, engine_only, estimate, oracle
from torch import nn
from torch.utils.checkpoint import checkpoint

from unlearnkit import UnlearnKitError, UnlearnKitWarning

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "exact-fisher.md"


class Uses(nn.Module):
    """A module whose forward is given."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


class Double(torch.autograd.Function):
    """2xw as a custom function that torch does not expose as a call."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return 2 * x * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return 2 * g * w, (2 * g * x).sum(0)


def affine(x, w, b):
    return x @ w.t() + b


@functools.cache
def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have it exported
        return torch.jit.script(affine)


def linear(inner=6, out=5):
    return nn.Linear(inner, out)


def experts(m, x):
    chosen, y = x.sum(1) > 0, x.new_zeros(len(x), 5)
    for k, expert in enumerate((m.f, m.g)):
        rows = (chosen == bool(k)).nonzero()[:, 0]
        y = y.index_add(0, rows, expert(x[rows]))
    return y


def packed(m, x):
    rows = nn.utils.rnn.pack_padded_sequence(x.unsqueeze(1), [1] * len(x), batch_first=True)
    return m.cell(rows)[1][-1]


def tokens():
    return torch.tensor(
        [[0, 1, 1, 2, 3, 0], [2, 2, 2, 1, 0, 3], [3, 1, 0, 0, 2, 1], [1, 1, 1, 1, 1, 1], [0, 3, 2, 1, 0, 2]]
    )


def by_backward(model, data, objective):
    """Like the oracle, for cases that autograd.grad does not support."""
    totals = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in model.named_parameters()}
    for i in range(5):
        model.zero_grad()
        objective.losses(model, tuple(t[i : i + 1] for t in data[0])).sum().backward()
        for n, p in model.named_parameters():
            totals[n] += p.grad.double() ** 2
    model.zero_grad()
    return totals


FALLS_BACK = {
    "packed sequences": (lambda: Uses(packed, cell=nn.GRU(6, 5, batch_first=True)), None),
    "mixing": (lambda: Uses(lambda m, x: m.f(x - x.mean(0) * (len(x) > 1)), f=linear()), None),
    "branching": (lambda: Uses(lambda m, x: m.f(x) * (1 + (len(x) > 3)), f=linear()), None),
    "custom function": (lambda: Uses(lambda m, x: Double.apply(x, m.w), w=nn.Parameter(torch.ones(6))), None),
    "scripted": (lambda: Uses(lambda m, x: scripted()(x, m.f.weight, m.f.bias), f=linear()), None),
    "reentrant": (
        lambda: Uses(
            lambda m, x: m.g(checkpoint(m.f, m.s(x), use_reentrant=True)), s=linear(), f=linear(5, 5), g=linear(5, 5)
        ),
        None,
    ),
}


class Later(nn.Module):
    """Samples depend on each other from the second batch on."""

    def __init__(self):
        super().__init__()
        self.f = linear()

    def forward(self, x):
        return self.f(x - x.mean(0) * (len(x) > 1) if float(x.max()) > 9 else x)


class Mean(SumOfSquares):
    def losses(self, model, batch):
        return super().losses(model, batch).mean()


def batches(x):
    return [(x, torch.randn(len(x)))] * 3


def still(m, x):
    with torch.no_grad():
        return m.f(x)


def normalised(m, x):
    return nn.functional.batch_norm(x, None, None, m.w, training=True)


INPUT = torch.arange(30.0).view(5, 6) / 30
REFUSED = {
    "batch statistics": lambda: (nn.BatchNorm1d(6, track_running_stats=False), batches(INPUT)),
    "called in training": lambda: (Uses(normalised, w=nn.Parameter(torch.ones(6))), batches(INPUT)),
    "later mixing": lambda: (Later(), batches(INPUT)[:1] + batches(INPUT * 11)),
    "renormalised rows": lambda: (
        Uses(lambda m, x: m.e(x).flatten(1), e=nn.Embedding(4, 9, max_norm=0.1)),
        batches(tokens()),
    ),
    "complex": lambda: (
        Uses(lambda m, x: (x * m.w).abs(), w=nn.Parameter(torch.ones(6, dtype=torch.complex64))),
        batches(INPUT),
    ),
    "without values": lambda: (nn.LazyLinear(3), batches(INPUT)),
    "no gradient": lambda: (Uses(still, f=linear()), batches(INPUT)),
    "one loss": lambda: (linear(), batches(INPUT), Mean()),
    "no number": lambda: (linear(), batches(INPUT * 1e30)),
    "ragged batches": lambda: (linear(), [(INPUT, torch.ones(4))]),
}
ROWS = re.findall(r"^\| `?([a-z ]+)`? \| .* \| `(.+?)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def rows():
    """Name to the warning that the page shows."""
    return {name.strip(): words for name, words in ROWS}


def test_data_dependent_expert_loads_need_no_fallback():
    torch.manual_seed(0)
    model = Uses(experts, f=linear(), g=linear())
    engine_only(model, [(torch.randn(n, 6), torch.randn(n)) for n in (5, 7, 5, 2)], objective=SumOfSquares())


def test_frequencies_are_counted_in_each_sample():
    torch.manual_seed(0)
    model = Uses(lambda m, x: m.e(x).flatten(1), e=nn.Embedding(4, 2, scale_grad_by_freq=True))
    engine_only(model, [(tokens(), torch.randn(5))], objective=SumOfSquares())


def test_page_and_tests_list_the_same_cases():
    assert set(rows()) == set(FALLS_BACK) | set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_have_the_wording_of_the_page(name):
    torch.manual_seed(0)
    model, data, *objective = REFUSED[name]()
    with pytest.raises(UnlearnKitError, match=re.escape(rows()[name])):
        estimate(model, data, *(objective or [SumOfSquares()]), recheck=1)


@pytest.mark.parametrize("name", FALLS_BACK)
def test_fallbacks_are_exact_and_warn_as_the_page_says(name):
    make, draw = FALLS_BACK[name]
    reference = oracle if name != "reentrant" else by_backward
    torch.manual_seed(0)
    model = make().eval()
    x = draw() if draw else torch.randn(5, 6)
    data = [(x, torch.randn(5))]
    with pytest.warns(UnlearnKitWarning, match=re.escape(rows()[name]).replace("…", ".*")) as caught:
        seen = estimate(model, data, SumOfSquares())
    assert len(caught) == 1
    assert distance(seen, reference(model, data, SumOfSquares())) < 1e-4
