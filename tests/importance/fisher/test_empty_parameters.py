"""Empty parameters, and unused parameters."""

import pytest
import torch
from fisher_oracle import SumOfSquares, engine_only
from torch import nn


class Hollow(nn.Module):
    """Layers of width 0, an empty parameter in a sum, and two unused layers."""

    def __init__(self):
        super().__init__()
        self.body, self.into, self.out = nn.Linear(6, 4), nn.Linear(6, 0), nn.Linear(0, 4)
        self.empty, self.unused = nn.Parameter(torch.zeros(0, 3)), nn.Linear(2, 2)
        self.table, self.conv = nn.Embedding(3, 0), nn.Conv2d(2, 2, 3)

    def forward(self, x):
        return self.body(x) + self.out(self.into(x)) + self.empty.sum()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"chunk": 1}, {"accumulate": "compensated"}])
def test_parameters_without_elements_and_without_use(dtype, options):
    torch.manual_seed(0)
    model = Hollow().to(dtype)
    data = [(torch.randn(n, 6, dtype=dtype), torch.randn(n)) for n in (5, 3, 1)]
    seen = engine_only(model, data, SumOfSquares(), **options)
    assert seen["into.weight"].shape == (0, 6)
    assert seen["table.weight"].shape == (3, 0)
    assert float(seen["conv.weight"].sum()) == 0
    assert not seen["unused.bias"].any()
