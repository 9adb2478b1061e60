"""Losses in bfloat16: accuracy, float32 totals, and no mixing with other precisions."""

import pytest
import torch
from fisher_oracle import SumOfSquares, oracle
from torch import nn

from unlearnkit import ConfigurationError, CrossEntropy, DiagonalFisher, MismatchError
from unlearnkit.models.objective import Autocast, float32_products


def law_case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 3))
    return model.eval(), [(torch.randn(8, 2, 6, 6), torch.randint(3, (8,))) for _ in range(2)]


def estimate(objective, batches=None):
    model, data = law_case()
    return DiagonalFisher().estimate(model, batches or data, objective=objective)


def test_totals_are_float32_and_near_the_oracle_in_float64():
    model, batches = law_case()
    expected, seen, wide = oracle(model, batches), estimate(Autocast()).totals, estimate(CrossEntropy()).totals
    for name, total in seen.items():
        assert total.dtype == torch.float32
        error = float((total.double() - expected[name]).norm() / expected[name].norm())
        assert error < 0.05
        assert not torch.equal(total, wide[name])


def test_batch_size_does_not_matter_beyond_the_rounding_of_bfloat16():
    _, batches = law_case()
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(y))]
    whole, one_by_one = estimate(Autocast()).totals, estimate(Autocast(), singles).totals
    for name, total in whole.items():
        assert float((total - one_by_one[name]).norm() / total.norm()) < 0.02


def test_importances_of_two_precisions_cannot_be_mixed():
    with pytest.raises(MismatchError, match=r'objective: "Autocast\(objective=CrossEntropy'):
        estimate(Autocast()).merge(estimate(CrossEntropy()))


def test_autocast_is_off_again_after_an_error():
    class Broken(nn.Module):
        def forward(self, _):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Autocast().losses(Broken(), (torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)))
    assert not torch.is_autocast_enabled("cpu")


def test_logits_are_those_of_the_lower_precision_too():
    """Estimators that draw labels from the model read the logits, which must have the lower precision too."""
    model, (batch, _) = law_case()
    seen, wide = Autocast().logits(model, batch), CrossEntropy().logits(model, batch)
    assert seen.dtype == torch.float32
    assert not torch.equal(seen, wide)
    assert torch.allclose(seen, wide, atol=0.05)
    with pytest.raises(ConfigurationError, match="method logits"):
        Autocast(objective=SumOfSquares()).logits(model, batch)


@pytest.fixture
def switches():
    """torch's tf32 switches, restored afterwards."""
    held = [
        torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv
    ]  # fmt: skip
    before = [switch.fp32_precision for switch in held]
    yield held
    for switch, value in zip(held, before, strict=True):
        switch.fp32_precision = value


def test_how_float32_is_multiplied_on_a_device(switches):
    device = torch.device("cuda")
    for product, convolution in (("ieee", "ieee"), ("ieee", "tf32"), ("tf32", "tf32")):
        switches[0].fp32_precision, switches[1].fp32_precision = product, convolution
        assert float32_products(device) == f"products {product}, convolutions {convolution}"
        assert float32_products(torch.device("cpu")) == ""


def test_changed_tf32_switch_is_in_the_fingerprint_and_prevents_merging(switches):
    exact = estimate(CrossEntropy())
    assert exact.fingerprint.precision == "gradients float32, totals float32"
    switches[2].fp32_precision = "bf16"
    rounded = estimate(CrossEntropy())
    assert rounded.fingerprint.precision.endswith("totals float32, products bf16, convolutions ieee")
    with pytest.raises(MismatchError, match="precision"):
        exact.merge(rounded)


@pytest.mark.gpu
def test_tf32_on_a_gpu_is_recorded(switches):
    model, batches = law_case()
    switches[0].fp32_precision = "tf32"
    found = DiagonalFisher().estimate(model.cuda(), batches, objective=CrossEntropy())
    assert "products tf32" in found.fingerprint.precision


@pytest.mark.gpu
def test_autocast_on_a_gpu():
    model, batches = law_case()
    expected = oracle(model, batches)
    seen = DiagonalFisher().estimate(model.cuda(), batches, objective=Autocast()).totals
    for name, total in seen.items():
        assert float((total.cpu().double() - expected[name]).norm() / expected[name].norm()) < 0.05
