"""Code paths for CUDA, tested on the CPU."""

import pytest
import torch
from fisher_oracle import distance, oracle
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from unlearnkit import CrossEntropy, DiagonalFisher, UnlearnKitWarning
from unlearnkit.importance.fisher.engine import engine
from unlearnkit.importance.fisher.engine.engine import Fitted
from unlearnkit.importance.fisher.engine.kernel import squares_in_one_pass
from unlearnkit.importance.fisher.engine.totals import Totals, add_exactly


def chunks(device, samples, elements, bound):
    with FakeTensorMode():
        w = torch.empty(64, device=device)
        slot = Totals({"w": w}, double=False, memory=64 << 20).slot("w")
        return len(list(slot.chunks(samples, elements, bound=bound)))


def test_chunks_on_a_device_are_limited_only_by_memory():
    """Chunks that fit a CPU cache would start thousands of small operations on a device."""
    assert chunks("cpu", 256, 64 * 112 * 112, 1 << 20) == 256
    assert chunks("cuda", 256, 64 * 112 * 112, 1 << 20) == 13


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_squares_in_one_pass_are_those_of_two(scale):
    torch.manual_seed(0)
    several = torch.randn(7, 5, 3) * scale
    expected = several.double().square().sum(0)
    assert float((squares_in_one_pass(several).double() / expected - 1).abs().max()) < 1e-6
    several[3, 2, 1] = float("nan")
    assert squares_in_one_pass(several).isnan().sum() == 1


def test_weight_and_bias_share_the_converted_gradient():
    class Counts(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            self.seen += func.overloadpacket.__name__ == "_to_copy" and result.dtype == torch.float32
            return result

    found = {}
    for bias in (True, False):
        torch.manual_seed(0)
        model, batch = nn.Linear(4, 3, bias=bias).bfloat16(), (torch.randn(6, 4).bfloat16(), torch.zeros(6).long())
        run = DiagonalFisher().accumulator(model.eval(), objective=CrossEntropy())
        run.add(batch)
        with Counts() as counts:
            run.add(batch)
        found[bias] = counts.seen
    assert found[True] == found[False] > 0


def test_two_sum_does_not_depend_on_the_piece_size(monkeypatch):
    torch.manual_seed(0)
    found = []
    for step in (7, 100):
        monkeypatch.setattr("unlearnkit.importance.fisher.engine.totals._TWO_SUM", {"cpu": step})
        total, lost = torch.rand(50), torch.zeros(50)
        torch.manual_seed(1)
        add_exactly(total, lost, torch.rand(50))
        found.append(total + lost)
        torch.manual_seed(0)
    assert torch.equal(*found)


def test_batch_shape_is_trusted_after_n_passes_of_its_largest_size():
    fitted = Fitted(2)
    for size, sure in ((4, False), (4, True), (3, True), (5, False), (4, False), (5, True)):
        fitted.well("kind", size)
        assert fitted.sure("kind", size) == sure
    assert not fitted.sure("other", 1)
    assert not fitted.trust("kind", 5)
    fitted.well("kind", 6)
    assert fitted.trust("kind", 6)
    assert fitted.sure("kind", 6)


class Fails(nn.Module):
    """Runs out of memory in some passes of many samples, in the forward or the backward pass."""

    def __init__(self, *passes, forward=False):
        super().__init__()
        self.passes, self.forward_too = passes, forward
        self.large = -1  # the first pass is the probe

    def forward(self, x):
        if len(x) > 3:
            self.large += 1
            if self.large in self.passes:
                if self.forward_too:
                    raise torch.OutOfMemoryError("out of memory")
                x = x.clone()
                x.register_hook(self._fail)
        return x

    def _fail(self, g):  # noqa: ARG002
        raise torch.OutOfMemoryError("out of memory")


def network(*passes, forward=False):
    torch.manual_seed(0)
    fails = Fails(*passes, forward=forward)
    return nn.Sequential(nn.Conv2d(3, 4, 3), fails, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


def batches(count):
    torch.manual_seed(1)
    return [(torch.randn(8, 3, 6, 6), torch.randint(0, 5, (8,))) for _ in range(count)]


def estimate(model, data, monkeypatch):
    monkeypatch.setattr(engine, "_SETTLED", {"cpu": 4})
    return DiagonalFisher().estimate(model, data, objective=CrossEntropy()).totals


def test_pass_that_does_not_fit_beside_its_own_totals_is_added_directly(monkeypatch, recwarn):
    seen = estimate(network(2), batches(5), monkeypatch)
    assert distance(seen, oracle(network(), batches(5))) < 1e-5
    assert not [w for w in recwarn if issubclass(w.category, UnlearnKitWarning)], "nothing was halved"


def test_out_of_memory_before_any_addition_halves_the_batch(monkeypatch):
    model = network(2, 3, forward=True)
    with pytest.warns(UnlearnKitWarning, match="out of memory with 8 samples"):
        seen = estimate(model, batches(5), monkeypatch)
    assert distance(seen, oracle(network(), batches(5))) < 1e-5


def test_out_of_memory_after_an_addition_is_an_error(monkeypatch):
    with pytest.raises(torch.OutOfMemoryError) as caught:
        estimate(network(2, 3), batches(5), monkeypatch)
    assert any("whose like had fitted before" in note for note in caught.value.__notes__)
