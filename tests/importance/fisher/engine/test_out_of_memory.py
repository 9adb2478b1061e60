"""Out-of-memory errors."""

import attrs
import pytest
import torch
from fisher_oracle import distance, estimate, oracle
from torch import nn

from unlearnkit import CrossEntropy, Objective, UnlearnKitWarning
from unlearnkit.importance import fisher_statistics
from unlearnkit.importance.fisher.engine.per_sample_fallback import SquaredGradients


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


def batches(*sizes):
    torch.manual_seed(1)
    return [(torch.randn(n, 3, 6, 6), torch.randint(0, 5, (n,))) for n in sizes]


@attrs.define(eq=False)
class Small(Objective):
    """Runs out of memory with too many samples, in the forward or the backward pass."""

    most: int
    backward: bool = False
    error: type = torch.OutOfMemoryError
    fails: int = attrs.field(default=0, init=False)

    def losses(self, model, batch):
        found = CrossEntropy().losses(model, batch)
        if len(batch[0]) > self.most:
            if not self.backward:
                raise self._out()
            found = Explode.apply(found, model, self)
        return found

    def _out(self):
        self.fails += 1
        return self.error("CUDA out of memory. Tried to allocate 2.00 GiB")


class Explode(torch.autograd.Function):
    """Fails in the backward pass."""

    @staticmethod
    def forward(ctx, x, model, owner):  # noqa: ARG004
        ctx.owner = owner
        return x.clone()

    @staticmethod
    def backward(ctx, g):  # noqa: ARG004
        raise ctx.owner._out()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_batch_that_does_not_fit_is_halved(backward, error):
    model, data, objective = network(), batches(13, 13, 5), Small(4, backward=backward, error=error)
    with pytest.warns(UnlearnKitWarning, match=r"out of memory with 13 samples.*going on with 6 and fewer") as caught:
        seen = estimate(model, data, objective)
    assert len(caught) == 1
    assert objective.fails == 2, "the smaller size stays"
    assert distance(seen, oracle(model, data)) < 1e-5


def test_groups_and_statistics_of_a_halved_batch():
    model, data, objective = network(), batches(13, 5), Small(4, backward=True, error=RuntimeError)
    with pytest.warns(UnlearnKitWarning, match="out of memory with 13 samples"):
        seen = fisher_statistics(model, data, objective=objective, absolute=True, gradient=True)
    expected = fisher_statistics(model, data, objective=CrossEntropy(), absolute=True, gradient=True)
    for name in ("absolute", "batched"):
        assert distance(getattr(seen, name).totals, dict(getattr(expected, name).totals)) < 1e-5
    for name, gradient in expected.gradient.items():
        assert (seen.gradient[name] - gradient).abs().max() < 1e-5 * gradient.abs().max()


class FailsOnce(nn.Module):
    """A layer whose backward pass runs out of memory once, after later layers have added their squares."""

    def __init__(self, on):
        super().__init__()
        self.on, self.large = on, 0

    def forward(self, x):
        if len(x) > 3:
            self.large += 1
            if self.large == self.on:
                x = x.clone()
                x.register_hook(self._fail)
        return x

    def _fail(self, g):  # noqa: ARG002
        raise torch.OutOfMemoryError("out of memory")


def test_squares_of_a_failed_pass_are_rolled_back():
    model = network()
    model.insert(1, FailsOnce(1))
    with pytest.warns(UnlearnKitWarning, match="out of memory"):
        seen = estimate(model, batches(8, 8))
    assert distance(seen, oracle(model, batches(8, 8))) < 1e-5


def test_failed_pass_that_cannot_be_rolled_back_is_an_error():
    """On the CPU a batch no larger than one that went well is added directly."""
    model = network()
    model.insert(1, FailsOnce(2))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        estimate(model, batches(8, 8))
    assert any("whose like had fitted before" in note for note in caught.value.__notes__)


class Mixing(nn.Module):
    """Not supported by the engine, but by torch.func."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(108, 5)

    def forward(self, x):
        x = x.flatten(1)
        return self.f(x - x.mean(0)) if len(x) > 1 else self.f(x)


def test_fallback_batches_are_halved(monkeypatch):
    ordinary = SquaredGradients._chunks

    def chunks(self, batch):
        for found in ordinary(self, batch):
            yield found
            if len(batch[0]) > 5:
                raise torch.OutOfMemoryError("after a chunk has been added")

    monkeypatch.setattr(SquaredGradients, "_chunks", chunks)
    model, data = Mixing(), batches(9, 3)
    with pytest.warns(UnlearnKitWarning) as caught:
        seen = estimate(model, data, chunk=9)
    assert sorted("out of memory" in str(w.message) for w in caught) == [False, True]
    assert any("torch.func" in str(w.message) for w in caught)
    assert distance(seen, oracle(model, data)) < 1e-5


def test_a_chunk_that_was_half_added_when_memory_ran_out_on_a_cpu_is_not_added_twice(monkeypatch):
    whole, calls = SquaredGradients.add, [0]

    def add(self, batch, receive):
        def half(name, g):
            calls[0] += 1
            if calls[0] == 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            receive(name, g)

        return whole(self, batch, half)

    monkeypatch.setattr(SquaredGradients, "add", add)
    model, data = Mixing(), batches(6)
    with pytest.warns(UnlearnKitWarning) as caught:
        seen = estimate(model, data)
    assert sorted("out of memory" in str(w.message) for w in caught) == [False, True]
    assert distance(seen, oracle(model, data)) < 1e-5


def test_one_sample_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UnlearnKitWarning, match="out of memory"):
        estimate(network(), batches(4), Small(0))


def test_groups_and_batch_gradients_after_out_of_memory():
    model, data = network(), batches(9, 9)
    expected = fisher_statistics(model, data, objective=CrossEntropy(), key=-1, gradient=True, absolute=True)
    with pytest.warns(UnlearnKitWarning, match="out of memory"):
        seen = fisher_statistics(model, data, objective=Small(5, backward=True), key=-1, gradient=True, absolute=True)
    for key, one in expected.groups.items():
        assert distance(seen.groups[key].totals, {n: t.double() for n, t in one.totals.items()}) < 1e-5
        assert seen.groups[key].count == one.count
    assert distance(seen.batched.totals, {n: t.double() for n, t in expected.batched.totals.items()}) < 1e-5
    assert distance(seen.absolute.totals, {n: t.double() for n, t in expected.absolute.totals.items()}) < 1e-5
