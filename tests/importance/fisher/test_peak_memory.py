"""Peak memory of a pass, counted by torch's own allocator: independent of other processes and the C library."""

import gc

import pytest
import torch
from fisher_oracle import engine_only
from peak_memory import peak, peak_and_rest
from torch import nn

from unlearnkit import CrossEntropy, DiagonalFisher, UnlearnKitWarning

MIB = 1 << 20
SAMPLES = 32


def plain(model, batch):
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    model.zero_grad(set_to_none=True)


def wide():
    return nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 5))


def tokens():
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(4096, 5))


def embedded():
    return nn.Sequential(nn.Embedding(20_000, 64), nn.Flatten(), nn.Linear(64 * 12, 5))


def images():
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 256, 3), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 5)),
    )


class Recurrent(nn.Module):
    """Its recurrent weights are used at every step."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(128, 256, batch_first=True), nn.Linear(256, 5)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Tied(nn.Module):
    """Its embedding is its head."""

    def __init__(self):
        super().__init__()
        self.token, self.between = nn.Embedding(500, 128), nn.Linear(128, 128)

    def forward(self, x):
        y = self.between(self.token(x)).tanh().mean(1)
        return nn.functional.linear(y, self.token.weight)


CASES = {
    "mlp": (wide, lambda n: torch.randn(n, 512)),
    "tokens": (tokens, lambda n: torch.randn(n, 16, 256)),
    "embedding": (embedded, lambda n: torch.randint(0, 20_000, (n, 12))),
    "images": (images, lambda n: torch.randn(n, 3, 24, 24)),
    "recurrent": (Recurrent, lambda n: torch.randn(n, 8, 128)),
    "tied": (Tied, lambda n: torch.randint(0, 500, (n, 12))),
}


def made(kind):
    make, draw = CASES[kind]
    torch.manual_seed(0)
    model = make().eval()
    return model, (draw(SAMPLES), torch.randint(0, 5, (SAMPLES,)))


def weights_of(model, itemsize=4):
    return sum(p.numel() * itemsize for p in model.parameters())


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize(
    ("accumulate", "times", "budget"),
    [("float32", 1, 4), ("compensated", 2, 4), ("float64", 3, 64)],
)
def test_estimate_needs_little_more_memory_than_a_plain_pass(kind, accumulate, times, budget):
    """At most once the weights and the budget: the totals are there together with all activations.

    A batch that is added apart from the rest takes another set of totals in the place of the gradients. Totals in
    float64 are as large as two sets; what rounding loses is one more.
    """
    model, (x, y) = made(kind)
    weights = weights_of(model)
    ordinary = peak(lambda: plain(model, (x, y)))
    run = DiagonalFisher(memory_budget=budget, accumulate=accumulate)
    data = [(x[:20], y[:20]), (x, y), (x[:1], y[:1])]  # the second is larger, so that it is added apart from the first
    ours = peak(lambda: run.estimate(model, data, objective=CrossEntropy()))
    assert ours <= ordinary + times * weights + budget * MIB


@pytest.mark.parametrize("kind", CASES)
def test_first_pass_needs_no_more_memory_than_a_plain_one(kind):
    """A pass holds its totals in the place of the gradients; the probe before it compares without copies of these."""
    model, batch = made(kind)
    run = DiagonalFisher(memory_budget=4).accumulator(model, objective=CrossEntropy())
    assert peak(lambda: run.add(batch)) <= peak(lambda: plain(model, batch)) + 4 * MIB


@pytest.mark.parametrize("kind", CASES)
def test_later_pass_holds_no_more_than_a_plain_one_plus_totals(kind):
    """No weight gradient is computed; memory goes to buffers of kernels and operands of shared weights instead."""
    model, batch = made(kind)
    run = DiagonalFisher(memory_budget=4, recheck=0).accumulator(model, objective=CrossEntropy())
    run.add(batch)
    assert peak(lambda: run.add(batch)) <= peak(lambda: plain(model, batch)) + 4 * MIB


class Words(nn.Module):
    """A large vocabulary: logits of 4 MiB for weights of 1 MiB."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Embedding(4096, 32), nn.Linear(32, 4096, bias=False)

    def forward(self, x):
        return self.head(self.token(x)).transpose(1, 2)


def pooled():
    """Max-pooling that saves 2¹⁹ indices, and activations that are held on top of them."""
    between = [nn.Tanh() for _ in range(8)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.MaxPool2d(2), *between, *head)


@pytest.mark.parametrize(
    ("make", "draw", "labels"),
    [
        (Words, lambda: torch.randint(0, 4096, (8, 32)), (8, 32)),  # log-probabilities are large beside the weights
        (pooled, lambda: torch.randn(16, 3, 64, 64), (16,)),  # so are the indices that max-pooling saves
    ],
)
def test_at_most_a_quarter_more_than_a_pass_that_keeps_its_gradients(make, draw, labels):
    torch.manual_seed(0)
    model = make().eval()
    batch = (draw(), torch.randint(0, 2, labels))
    run = DiagonalFisher(recheck=0).accumulator(model, objective=CrossEntropy())
    first = peak(lambda: run.add(batch))
    later = peak(lambda: run.add(batch))
    assert max(first, later) <= 1.25 * peak(lambda: plain(model, batch))


def test_deriving_row_owners_stays_within_the_memory_bound():
    """The first batch of a shape keeps its graph for a second backward pass."""
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    batch = (torch.randn(16, 3, 48, 48), torch.randint(0, 8, (16,)))
    run = DiagonalFisher(memory_budget=1).accumulator(model, objective=CrossEntropy())
    assert peak(lambda: run.add(batch)) <= 1.25 * peak(lambda: plain(model, batch))


@pytest.mark.parametrize("kernels", ["auto", "fixed"])
@pytest.mark.parametrize("kind", CASES)
def test_pass_leaves_only_its_totals(kind, kernels):
    """Memory in reference cycles is freed only when the garbage collector runs."""
    model, batch = made(kind)
    run = DiagonalFisher(kernels=kernels, recheck=0).accumulator(model, objective=CrossEntropy())
    gc.collect()
    gc.disable()
    try:
        rests = [peak_and_rest(lambda: run.add(batch))[1] for _ in range(3)]
    finally:
        gc.enable()
    # One buffer for each weight, also where several rules add to it; its rows may be padded.
    padded = sum(p.numel() * 4 * 1.2 if p.dim() > 1 else p.numel() * 4 for p in model.parameters())
    assert weights_of(model) <= rests[0] <= padded + MIB // 4
    assert rests[1:] == [0, 0]


def test_fallback_stays_within_the_memory_bound():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRU(512, 512, batch_first=True), nn.Linear(512, 5)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, [4] * len(x), batch_first=True)
            return self.head(self.cell(packed)[1][-1])

    torch.manual_seed(0)
    model, batch = Packed(), (torch.randn(16, 4, 512), torch.randint(0, 5, (16,)))
    weights = weights_of(model)
    ordinary = peak(lambda: plain(model, batch))
    with pytest.warns(UnlearnKitWarning, match="cannot be proven"):
        ours = peak(lambda: DiagonalFisher().estimate(model, [batch], objective=CrossEntropy()))
    assert ours <= ordinary + 2 * weights + 64 * MIB


def test_shared_weights_are_cut_into_chunks():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.head = nn.Conv2d(64, 64, 3, padding=1), nn.Linear(64, 5)

        def forward(self, x):
            return self.head(self.one(self.one(x)).mean((2, 3)))

    model, batch = Twice(), (torch.randn(16, 64, 16, 16), torch.randint(0, 5, (16,)))
    ordinary = peak(lambda: plain(model, batch))
    ours = peak(lambda: DiagonalFisher(memory_budget=8).estimate(model, [batch], objective=CrossEntropy()))
    kept = 2 * 2 * batch[0].numel() * 4  # inputs and gradients of both uses are held until the end of the pass
    assert ours <= ordinary + kept + 8 * MIB
    engine_only(model, [batch])
