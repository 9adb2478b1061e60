"""`fisher-noise`: θ' = θ + σ·max(F_r, φ)^(−γ)·z, the same draw for the same seed on every device and in every dtype."""

import math

import pytest
import torch
from torch import nn
from unlearnkit_methods.fisher_noise import FisherNoise as Noise

from unlearnkit import ConfigurationError, Importance, NonFiniteError, UnlearningInputs, UnlearnKitWarning
from unlearnkit.testing import parametrize_with_checks


def net(dtype=torch.float64, device="cpu"):
    model = nn.Linear(50, 40).to(device, dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(-2.0)
    return model


def importance(model, role="retain"):
    generator = torch.Generator().manual_seed(5)
    totals = {
        n: 10 * torch.rand(p.shape, generator=generator, dtype=torch.float64) for n, p in model.named_parameters()
    }
    totals["bias"][:10] = 0.0
    return Importance(totals=totals, count=4, role=role)


def edited(method, *, seed=0, dtype=torch.float64, device="cpu"):
    model = net(dtype, device)
    method.unlearn(model, UnlearningInputs(reference=importance(model), seed=seed))
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).cpu()


def test_worked_example():
    s = Noise(sigma=2.0, floor=0.25).deviation(torch.tensor([4.0, 1.0, 0.25, 0.01, 0.0]))
    assert s.tolist() == [1.0, 2.0, 4.0, 4.0, 4.0]
    s = Noise(sigma=2.0, gamma=0.25, floor=0.0625).deviation(torch.tensor([16.0, 1.0, 0.0]))
    assert s.tolist() == [1.0, 2.0, 4.0]
    assert Noise(sigma=2.0, gamma=0.0).deviation(torch.tensor([5.0, 0.0])).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("sigma", "gamma", "floor"), [(1e-3, 0.5, 1e-3), (0.1, 0.25, 0.5), (0.01, 1.0, 1e-2)])
def test_the_equation_against_an_oracle_in_float64(sigma, gamma, floor):
    found = edited(Noise(sigma=sigma, gamma=gamma, floor=floor), seed=7)
    generator, expected = torch.Generator().manual_seed(7), []
    for total in importance(net()).totals.values():
        z = torch.randn(total.shape, generator=generator, dtype=torch.float64)
        pairs = zip(total.reshape(-1).tolist(), z.reshape(-1).tolist(), strict=True)
        expected += [-2.0 + sigma / math.pow(max(t / 4, floor), gamma) * x for t, x in pairs]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)


def test_the_published_codes_variance():
    # var = α·clamp(1/F, max=10³) with α = 10⁻⁶
    f = torch.tensor([10.0, 0.5, 1e-3, 1e-5, 0.0], dtype=torch.float64)
    assert torch.allclose(Noise().deviation(f).square(), 1e-6 * (1 / f).clamp(max=1e3), rtol=1e-12)


def test_the_noise_is_standard_normal():
    method, f = Noise(sigma=0.3), importance(net()).mean()
    s = torch.cat([method.deviation(t).reshape(-1) for t in f.values()])
    z = torch.cat([(edited(method, seed=seed) + 2.0) / s for seed in range(5)])
    assert abs(float(z.mean())) < 4 / math.sqrt(len(z))
    assert abs(float(z.square().mean()) - 1) < 4 * math.sqrt(2 / len(z))


def test_noise_depends_only_on_the_seed():
    one = edited(Noise())
    torch.manual_seed(99)
    assert torch.equal(edited(Noise()), one)
    assert not torch.equal(edited(Noise(), seed=1), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_precision_gets_the_same_noise(dtype):
    assert torch.equal(edited(Noise(sigma=0.1), dtype=dtype), edited(Noise(sigma=0.1)).to(dtype))


@pytest.mark.gpu
def test_every_device_gets_the_same_noise():
    assert torch.allclose(edited(Noise(sigma=0.1), device="cuda"), edited(Noise(sigma=0.1)), rtol=1e-15, atol=0)


def test_no_noise_changes_no_bit():
    model = net()
    with torch.no_grad():
        model.bias.fill_(-0.0)  # −0 + 0·z would be +0
    assert Noise(sigma=0.0).unlearn(model, UnlearningInputs(reference=importance(model))).changed == 0


def test_full_set_as_reference_gives_a_remark():
    model = net()
    with pytest.warns(UnlearnKitWarning, match="measured on the full set"):
        report = Noise().unlearn(model, UnlearningInputs(reference=importance(model, "full")))
    assert report.remarks[0].startswith("F_r was measured on the full set")


def test_errors():
    for options, message in (
        ({"sigma": -1.0}, r"sigma \(σ\): expected a number ≥ 0"),
        ({"floor": 0.0}, r"floor \(φ\): expected a number > 0"),
        ({"gamma": 2.0}, r"gamma \(γ\): expected a number ≥ 0 ≤ 1"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            Noise(**options)
    with pytest.raises(ConfigurationError, match="expected reference"):
        Noise().unlearn(net(), UnlearningInputs())
    with pytest.raises(NonFiniteError, match="the model was put back"):
        edited(Noise(sigma=math.inf))


@parametrize_with_checks([Noise(sigma=0.1)])
def test_contract(subject, law):
    law.check(subject)


@pytest.mark.slow
@parametrize_with_checks([Noise(), Noise(sigma=0.5, gamma=0.25), Noise(sigma=0.0)])
def test_contract_with_other_options(subject, law):
    law.check(subject)


def test_by_name_on_the_digits(run_by_name):
    record, before, after = run_by_name("fisher-noise", "importance.reference='retain'", options="{sigma = 0.01}")
    assert record.report.fraction > 0.99
    differences = torch.cat([(after[t.name] - before[t.name]).reshape(-1) for t in record.report.tensors])
    assert float(differences.abs().max()) < 6 * 0.01 * math.sqrt(1e3)
    assert [e.role for e in record.report.evidence] == ["retain"]
