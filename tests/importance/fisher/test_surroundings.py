"""An estimate does not depend on its surroundings: autocast, inference mode, default dtype, unusual buffers."""

import contextlib

import pytest
import torch
from fisher_oracle import SumOfSquares, distance, engine_only, estimate, oracle
from torch import nn
from torch.nn import functional as F

from unlearnkit import CrossEntropy, DiagonalFisher, UnlearnKitWarning, UnsupportedModelError
from unlearnkit.models import Autocast, small_cnn


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "default dtype": lambda: default_dtype(torch.float64),
}


def digits(count=3):
    torch.manual_seed(0)
    return [(torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))) for _ in range(count)]


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("objective", [CrossEntropy(), Autocast()])
def test_an_estimate_sets_its_own_context(ambient, objective):
    model, data = small_cnn(seed=0), digits()
    plain = DiagonalFisher().estimate(model, data, objective=objective)
    with AMBIENT[ambient]():
        seen = DiagonalFisher().estimate(model, data, objective=objective)
        dtype = torch.get_default_dtype()
    assert seen.fingerprint == plain.fingerprint
    assert all(torch.equal(total, plain.totals[name]) for name, total in seen.totals.items())
    assert (dtype == torch.float64) == (ambient == "default dtype")


def test_data_made_under_inference_mode_are_copied():
    model, data = small_cnn(seed=0), digits()
    with torch.inference_mode():
        made = [tuple(t.clone() for t in batch) for batch in data]
    seen = estimate(model, made)
    assert distance(seen, oracle(model, data)) < 1e-4


class Masked(nn.Module):
    """Attention with a causal mask of −∞, as text towers register it."""

    def __init__(self):
        super().__init__()
        self.e, self.h = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.a = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6), persistent=False)

    def forward(self, t):
        x = self.e(t)
        return self.h(self.a(x, x, x, attn_mask=self.mask)[0]).transpose(1, 2)


def test_causal_mask_of_minus_infinity_is_accepted():
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (4, 6))
    engine_only(Masked(), [(tokens, tokens)])


def quantised():
    return torch.quantize_per_tensor(torch.randn(6, 6), 0.1, 0, torch.qint8)


BUFFERS = {
    "unused NaN": lambda: torch.full((3,), float("nan")),
    "sparse COO": lambda: torch.eye(6).to_sparse(),
    "sparse CSR": lambda: torch.eye(6).to_sparse_csr(),
    "sparse CSC": lambda: torch.eye(6).to_sparse_csc(),
    "quantised": quantised,
    "float8": lambda: torch.ones(6).to(torch.float8_e4m3fn),
    "conjugate": lambda: torch.randn(6, dtype=torch.complex64).conj(),
    "negative view": lambda: torch.randn(6, dtype=torch.complex64).conj().imag,
    "meta": lambda: torch.empty(6, device="meta"),
    "empty": lambda: torch.empty(0),
}


class Holds(nn.Module):
    def __init__(self, buffer):
        super().__init__()
        self.register_buffer("b", buffer)
        self.f = nn.Linear(6, 5)

    def forward(self, x):
        return self.f(x)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Sparse")
@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_of_any_kind_are_accepted(kind):
    torch.manual_seed(0)
    model, data = Holds(BUFFERS[kind]()), [(torch.randn(4, 6), torch.randint(0, 5, (4,)))]
    seen = DiagonalFisher().estimate(model, data, objective=CrossEntropy())
    assert distance(dict(seen.totals), oracle(_like(model), data)) < 1e-4
    assert DiagonalFisher().estimate(model, data, objective=CrossEntropy()).fingerprint == seen.fingerprint


def _like(model):
    plain = Holds(None)
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if name != "b"})
    return plain


class Counts(nn.Module):
    """Writes a buffer in each forward pass, like quantisation observers."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(6, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.f(x)


class Squeezes(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.p, self.f = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, x):
        return self.f(self.p(self.c(x)).squeeze())


class Caches(nn.Module):
    """Caches a tensor computed from its weights between passes, like LeViT's attention in eval mode."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(6, 5)
        self.table = nn.Parameter(torch.randn(5))
        self.cache = {}

    def forward(self, x):
        if "bias" not in self.cache:
            self.cache["bias"] = self.table * 2
        return self.f(x) + self.cache["bias"]


FLAT = [(torch.ones(4, 6), torch.tensor([0, 1, 2, 3]))] * 2
IMAGES = [(torch.ones(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
BLAMED = {
    "a counter": (Counts, FLAT, "saw calls written by its forward pass"),
    "a squeeze": (Squeezes, IMAGES, r"saw Squeezes fail on a batch of one .*squeeze\(dim\)"),
    "a cache": (Caches, FLAT, "saw Caches keep a tensor of an earlier pass in its attribute 'cache'"),
}


@pytest.mark.parametrize("kind", BLAMED)
def test_the_error_names_what_the_model_does(kind):
    make, data, words = BLAMED[kind]
    model = make()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=words):
        estimate(model, data)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Fused(torch.autograd.Function):
    """A custom function of a parameter that torch does not expose as a call."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.t() @ x


class HalfHidden(nn.Module):
    """One weight, used by a linear layer and, slightly, by a hidden function."""

    def __init__(self):
        super().__init__()
        self.f, self.h = nn.Linear(16, 16, bias=False), nn.Linear(16, 5)

    def forward(self, x):
        return self.h(torch.tanh(F.linear(x, self.f.weight) + 0.1 * Fused.apply(x, self.f.weight)))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.003)],
)
def test_hidden_use_of_a_weight_is_detected_in_any_precision(dtype, tolerance):
    torch.manual_seed(0)
    model = HalfHidden().to(dtype)
    data = [(torch.randn(8, 16).to(dtype), torch.randint(0, 5, (8,))) for _ in range(4)]
    with pytest.warns(UnlearnKitWarning, match=r"f.weight: used by a function that cannot be intercepted"):
        seen = estimate(model, data)
    assert distance(seen, oracle(model, data)) < tolerance


class Leaks(nn.Module):
    """Adds a tenth of the batch mean, detached, to every sample."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.one(x).tanh()
        return self.two(x - 0.2 * x.detach().mean(0) * (len(x) > 1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_dependence_below_half_precision_rounding_is_detected(dtype, tolerance):
    torch.manual_seed(0)
    model, data = Leaks().to(dtype), [(torch.randn(8, 6).to(dtype), torch.randn(8).to(dtype))]
    with pytest.warns(UnlearnKitWarning, match="cannot be proven to keep its samples apart"):
        seen = estimate(model, data, SumOfSquares())
    assert distance(seen, oracle(model, data, SumOfSquares())) < tolerance
