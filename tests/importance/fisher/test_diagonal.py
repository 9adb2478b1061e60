"""The diagonal Fisher against a loop over single samples in float64, written here."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import VisionTransformer

from unlearnkit import CrossEntropy, DiagonalFisher, Objective, UnlearnKitWarning, UnsupportedModelError
from unlearnkit.importance import Role

SETTINGS = settings(derandomize=True, deadline=None, max_examples=15)
CE = CrossEntropy()


class Tied(nn.Module):
    """Embeds tokens and predicts one with the same weights."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.mix = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embed(tokens).mean(1))))


class Dict(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x):
        return {"hidden": x, "logits": self.body(x)}


class ByValue(nn.Module):
    """Branches on a tensor's value, which vmap does not support."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x):
        out = self.body(x)
        return torch.stack([row * 2 if float(seen.sum()) > 0 else row for seen, row in zip(x, out, strict=True)])


class ByValueAgain(ByValue):
    """Another class, because each class warns once."""


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))


def frozen():
    model = mlp()
    model[0].weight.requires_grad_(requires_grad=False)
    model[3].bias.requires_grad_(requires_grad=False)
    return model


def cnn():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )
    model(torch.randn(16, 1, 4, 4) + 1)  # running statistics that are not the initial ones
    return model


def vit():
    model = VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3, dropout=0.1
    )
    nn.init.normal_(model.heads.head.weight)  # zeros in torchvision: nothing below would have a gradient
    return model


def unused():
    model = mlp()
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    return model


def flat(samples, dtype):
    return torch.randn(samples, 4, dtype=dtype), torch.arange(samples) % 3


def image(side):
    def make(samples, dtype):
        channels = 3 if side == 8 else 1
        return torch.randn(samples, channels, side, side, dtype=dtype), torch.arange(samples) % 3

    return make


def tokens(samples, _):
    return torch.randint(0, 5, (samples, 4)), torch.arange(samples) % 5


MODELS = {
    "mlp": (mlp, flat),
    "cnn with batch norm": (cnn, image(4)),
    "vision transformer": (vit, image(8)),
    "tied": (Tied, tokens),
    "frozen": (frozen, flat),
    "dict": (Dict, flat),
    "unused parameter": (unused, flat),
}


def make(name, samples=7, dtype=torch.float32):
    torch.manual_seed(0)
    build, data = MODELS[name]
    return build().to(dtype), data(samples, dtype)


def cut(batch, size):
    return list(zip(*(t.split(size) for t in batch), strict=True))


def oracle(model, batch):
    """Σ_i (∂ loss_i / ∂θ)², one sample at a time, float64, plain autograd, −log softmax written out."""
    model = copy.deepcopy(model).double().eval()
    totals = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
    x, y = batch
    for i in range(len(y)):
        model.zero_grad()
        out = model(x[i : i + 1].double() if x.is_floating_point() else x[i : i + 1])
        logits = out["logits"] if isinstance(out, dict) else out
        (torch.logsumexp(logits[0], 0) - logits[0, y[i]]).backward()
        for n, p in model.named_parameters():
            if p.requires_grad and p.grad is not None:
                totals[n] += p.grad**2
    return totals


def assert_equal(found, want, rtol):
    assert list(found) == list(want)
    for name, total in want.items():
        scale = float(total.abs().max())
        torch.testing.assert_close(
            found[name].double(), total, rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def estimate(model, batches, *, objective=CE, **options):
    return DiagonalFisher(**options).estimate(model, batches, objective=objective, role="forget")


def test_worked_example_with_a_weight_at_zero():
    model = nn.Linear(1, 2, bias=False).double()
    nn.init.zeros_(model.weight)
    batch = (torch.tensor([[2.0], [4.0], [6.0]], dtype=torch.float64), torch.tensor([0, 1, 1]))
    found = estimate(model, [batch])
    # softmax is ½ for both classes, so each gradient is ±x/2 and its square x²/4: 1 + 4 + 9.
    assert found.totals["weight"].tolist() == [[14.0], [14.0]]
    assert (found.count, found.samples, found.role) == (3, 3, Role.FORGET)
    assert found.mean()["weight"].tolist() == [[14 / 3], [14 / 3]]
    assert (found.fingerprint.unit, found.fingerprint.labels) == ("sample", "data")


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_loop_over_samples(name):
    model, batch = make(name)
    found = estimate(model, cut(batch, 3))
    assert found.count == found.samples == 7
    assert_equal(found.totals, oracle(model, batch), rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_totals_do_not_depend_on_batch_size_order_or_chunk(name):
    model, batch = make(name, dtype=torch.float64)
    want = estimate(model, cut(batch, 7)).totals
    order = torch.randperm(7)
    for size, chunk, data in [(1, 0, batch), (2, 1, batch), (4, 3, batch), (3, 2, tuple(t[order] for t in batch))]:
        assert_equal(estimate(model, cut(data, size), chunk=chunk).totals, want, rtol=1e-6)


@SETTINGS
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_totals_of_parts_add_and_subtract(part, size, other):
    model, batch = make("mlp", dtype=torch.float64)
    a, b = tuple(t[:part] for t in batch), tuple(t[part:] for t in batch)
    one, two, whole = (estimate(model, cut(data, s)) for data, s in ((a, size), (b, other), (batch, 4)))
    assert_equal((one + two).totals, dict(whole.totals), rtol=1e-6)
    assert (one + two).count == whole.count
    assert_equal((whole - one).totals, dict(two.totals), rtol=1e-6)


@SETTINGS
@given(st.floats(0.125, 8))
def test_a_loss_times_c_gives_squares_times_c_squared(c):
    class Scaled(Objective):
        def losses(self, model, batch):
            return c * CE.losses(model, batch)

    model, batch = make("mlp", dtype=torch.float64)
    want = {n: c * c * t for n, t in estimate(model, [batch]).totals.items()}
    assert_equal(estimate(model, [batch], objective=Scaled()).totals, want, rtol=1e-9)


@pytest.mark.parametrize("name", ["mlp", "cnn with batch norm"])
def test_train_mode_makes_no_difference_and_is_kept(name):
    model, batch = make(name)
    model.eval()
    want = estimate(model, [batch])
    model.train()
    found = estimate(model, [batch])
    assert model.training
    assert all(torch.equal(found.totals[n], want.totals[n]) for n in want.totals)
    assert found.fingerprint == want.fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_squared_and_added_in_float32(dtype):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(dtype)
    batch = ((torch.randn(6, 4) / 256).to(dtype), torch.arange(6) % 3)  # squares that vanish in float16
    found = estimate(model, [batch])
    assert all(t.dtype == torch.float32 for t in found.totals.values())
    assert_equal(found.totals, oracle(model, batch), rtol=0.05)
    assert bool((found.totals["weight"] > 0).all())
    assert found.fingerprint.precision.startswith(f"gradients {str(dtype).removeprefix('torch.')}")


def test_model_without_vmap_is_exact_and_warns_at_most_once():
    torch.manual_seed(0)
    model, batch = ByValue(), flat(7, torch.float32)
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        found = estimate(model, cut(batch, 3))
    assert [w.category for w in issued] in ([], [UnlearnKitWarning])
    assert all("ByValue" in str(w.message) for w in issued)
    assert_equal(found.totals, oracle(model, batch), rtol=1e-5)


def test_the_fallback_does_not_depend_on_the_batches_either():
    torch.manual_seed(0)
    model, batch = ByValueAgain().double(), flat(7, torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnlearnKitWarning)
        want = estimate(model, cut(batch, 7)).totals
        assert_equal(estimate(model, cut(batch, 2)).totals, dict(want), rtol=1e-6)


def test_positions_of_a_language_model_are_one_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5)).double()

    class NextToken(Objective):
        def losses(self, model, batch):
            logits = model(batch)[:, :-1].transpose(1, 2)
            return nn.functional.cross_entropy(logits, batch[:, 1:], reduction="none").sum(1)

    text = torch.randint(0, 5, (6, 4))
    want = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for row in text:
        model.zero_grad()
        (-torch.log_softmax(model(row)[:-1], 1)[range(3), row[1:]].sum()).backward()
        for n, p in model.named_parameters():
            want[n] += p.grad**2
    model.zero_grad()
    assert_equal(estimate(model, list(text.split(4)), objective=NextToken()).totals, want, rtol=1e-9)


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d, (5, 4)), (nn.BatchNorm2d, (5, 4, 2, 2)), (nn.BatchNorm3d, (5, 4, 2, 2, 2))]
)
def test_batch_norm_without_running_statistics_is_refused(norm, shape):
    model = nn.Sequential(norm(4, track_running_stats=False), nn.Flatten(), nn.LazyLinear(3))
    batch = (torch.randn(shape), torch.arange(5) % 3)
    model(batch[0])
    said = r"(?s)BatchNorm on batch statistics in 0.*(eval mode|GroupNorm)"
    with pytest.raises(UnsupportedModelError, match=said):
        estimate(model, [batch])


def test_two_runs_give_the_same_bits():
    model, batch = make("cnn with batch norm")
    one, two = estimate(model, cut(batch, 3)), estimate(model, cut(batch, 3))
    assert all(torch.equal(one.totals[n], two.totals[n]) for n in one.totals)
    assert one.trail == two.trail


@pytest.mark.parametrize("name", ["mlp", "tied"])
def test_result_does_not_hold_the_graph(name):
    model, batch = make(name)
    assert not any(t.requires_grad for t in estimate(model, [batch]).totals.values())
