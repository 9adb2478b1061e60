"""What would make a CUDA device wait in every batch, looked for on the CPU."""

import pytest
import torch
from fisher_models import Labelled, everything, mixed
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unlearnkit import CrossEntropy, DiagonalFisher
from unlearnkit.fisher.diagonal import start
from unlearnkit.fisher.finite import Watch

# What must bring a number to the host to go on: a value, or a shape that depends on values.
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "_unique2", "unique_dim", "masked_select", "equal")


class Waits(TorchDispatchMode):
    """Notes every operation that would wait."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:no rule for")
@pytest.mark.parametrize("extras", [{}, {"absolute": True, "gradient": True}])
def test_a_batch_like_one_before_makes_no_device_wait(extras, monkeypatch):
    """All families, groups and extras; only the looks for NaN, which a CUDA device collects, are left out."""
    monkeypatch.setattr(Watch, "look", lambda *_, **__: None)
    run = start(DiagonalFisher(), everything(), objective=Labelled(), **extras)
    first, second = mixed(6, 6)
    keys = [0, 1, 0, 2, 1, 0]
    run.add(first, keys)
    with Waits() as waits:
        run.add(second, keys)
    assert waits.seen == []


class Sequences(nn.Module):
    """Recurrent layers, whose weights are used many times and added at the end of the pass."""

    def __init__(self):
        super().__init__()
        self.cell, self.other, self.head = nn.LSTM(4, 3, 2, bidirectional=True), nn.GRUCell(6, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.other(self.cell(x.transpose(0, 1))[0].mean(0)))


@pytest.mark.parametrize("options", [{}, {"accumulate": "compensated"}, {"accumulate": "float64"}])
def test_recurrent_layers_and_ways_of_adding_make_none_wait_either(options, monkeypatch):
    monkeypatch.setattr(Watch, "look", lambda *_, **__: None)
    torch.manual_seed(0)
    run = start(DiagonalFisher(**options), Sequences(), objective=CrossEntropy())
    first, second = ((torch.randn(6, 5, 4), torch.randint(0, 3, (6,))) for _ in range(2))
    run.add(first, [0, 0, 1, 1, 1, 2])
    with Waits() as waits:
        run.add(second, [0, 1, 0, 2, 1, 2])
    assert waits.seen == []


def test_the_test_would_see_it():
    with Waits() as waits:
        bool(torch.ones(1).any())
        torch.unique(torch.ones(3))
    assert len(waits.seen) == 2
