"""The engine on a CUDA device; skipped where there is none."""

import pytest
import torch
from fisher_models import Labelled, everything, mixed
from fisher_oracle import distance, oracle
from torch import nn

from unlearnkit import CrossEntropy, DiagonalFisher, SketchedFisher, UnlearnKitWarning
from unlearnkit.data.batches import to_device
from unlearnkit.importance import fisher_statistics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:no rule for"),
    pytest.mark.usefixtures("exact_convolutions"),
]
DEVICE = torch.device("cuda")


def test_all_families_equal_one_sample_at_a_time_on_the_cpu():
    model, data = everything(torch.float32), mixed(7, 4, 1, dtype=torch.float32)
    expected = oracle(model, data, Labelled())
    found = fisher_statistics(model.to(DEVICE), data, objective=Labelled(), key=-1, absolute=True, gradient=True)
    assert distance({n: t.cpu() for n, t in found.importance.totals.items()}, expected) < 1e-3
    assert sum(one.count for one in found.groups.values()) == 12


def test_no_batch_synchronises_with_the_device():
    model, (first, second, third) = everything(torch.float32).to(DEVICE), mixed(6, 6, 6, dtype=torch.float32)
    for estimator in (DiagonalFisher(), SketchedFisher()):
        run = estimator.accumulator(model.eval(), objective=Labelled())
        run.add(to_device(first, DEVICE))
        rest = [to_device(batch, DEVICE) for batch in (second, third)]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in rest:
                run.add(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert run.result().count == 18


def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 1024, 5)).to(DEVICE)


def pictures(n):
    return torch.randn(n, 3, 32, 32, device=DEVICE), torch.randint(0, 5, (n,), device=DEVICE)


def test_out_of_memory_halves_the_batch():
    model, batch = wide(), pictures(4096)
    expected = DiagonalFisher(chunk=256).estimate(model, [batch], objective=CrossEntropy()).totals
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (600 << 20)) / total)
    try:
        with pytest.warns(UnlearnKitWarning, match="out of memory with 4096 samples"):
            seen = DiagonalFisher().estimate(model, [batch], objective=CrossEntropy()).totals
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert distance({n: t.cpu() for n, t in seen.items()}, {n: t.cpu().double() for n, t in expected.items()}) < 1e-4


def test_memory_stays_within_the_bound():
    model, batch = wide(), pictures(256)
    weights = sum(p.numel() * 4 for p in model.parameters())

    def peak(run):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def plain():
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        model.zero_grad(set_to_none=True)

    plain()
    ours = lambda: DiagonalFisher().estimate(model, [batch, batch], objective=CrossEntropy())  # noqa: E731
    assert peak(ours) <= peak(plain) + 2 * weights + (64 << 20)


@pytest.mark.parametrize("kernels", ["auto", "fixed"])
def test_every_choice_of_kernels_gives_the_same_totals(kernels):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Flatten(2), nn.Linear(64, 40), nn.Flatten())
    batch = (torch.randn(40, 3, 8, 8), torch.randint(0, 40, (40,)))
    expected = oracle(model, [batch], CrossEntropy())
    found = DiagonalFisher(kernels=kernels).estimate(model.to(DEVICE), [batch], objective=CrossEntropy()).totals
    assert distance({n: t.cpu() for n, t in found.items()}, expected) < 1e-4
