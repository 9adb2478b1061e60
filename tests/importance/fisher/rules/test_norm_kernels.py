"""Batch norm's own backward, against torch in float64."""

import pytest
import torch
from fisher_oracle import distance, estimate, oracle
from torch import nn
from torch.nn import functional as F

from unlearnkit.importance.fisher.rules.normalisation import batch_norm

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 1), (1, 3, 4, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_input_gradient(shape, dtype, affine):
    torch.manual_seed(0)
    x, g = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    layer = nn.BatchNorm1d(3, affine=affine).double()
    for t in layer.state_dict().values():
        if t.is_floating_point():
            t.uniform_(0.5, 2)
    scale = (layer.running_var + layer.eps).rsqrt() * (layer.weight if affine else 1)
    expected = g * scale.detach().view(-1, *(1,) * (g.dim() - 2))
    x = x.to(dtype).requires_grad_()
    kept = torch.float64 if dtype is torch.float64 else torch.float32
    held = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    of = [None if t is None else t.detach().to(kept) for t in held]
    y = batch_norm(F.batch_norm, x, *of)
    assert torch.equal(y, F.batch_norm(x, *of))
    permuted = g.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)  # torch's own misreads such a gradient
    assert y.grad_fn.name() == "FixedNormBackward"
    y.backward(permuted)
    assert x.grad.dtype is dtype
    assert (x.grad.double() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


def test_input_without_requires_grad_gets_no_gradient():
    y = batch_norm(F.batch_norm, torch.ones(2, 3), torch.zeros(3), torch.ones(3))
    assert y.grad_fn is None


class Deep(nn.Module):
    """Norms between layers, so that both the sums and the input gradients matter, on maps of either layout."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(
            *(nn.Conv2d(3, 70, 3), nn.BatchNorm2d(70), nn.ReLU(inplace=True), nn.Conv2d(70, 5, 2)),
            *(nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 9 * 9, 6), nn.BatchNorm1d(6)),
        )
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.parts(x)


@pytest.mark.parametrize("kernels", ["auto", "fixed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_of_norms(kernels, layout):
    torch.manual_seed(0)
    model = Deep().eval().to(memory_format=layout)
    data = [(torch.randn(n, 3, 12, 12).contiguous(memory_format=layout), torch.arange(n) % 6) for n in (5, 2, 1)]
    assert distance(estimate(model, data, kernels=kernels), oracle(model, data)) < 1e-5
