"""Parts of a parameter: views, and rows chosen by a constant index, of itself and of what is made of it."""

import pytest
import torch
from fisher_oracle import distance, engine_only, estimate, oracle
from torch import nn
from torch.nn import functional as F

from unlearnkit import CrossEntropy, UnlearnKitWarning
from unlearnkit.importance.fisher.engine import interceptor, per_sample_fallback
from unlearnkit.importance.fisher.engine.regions import region_of


class Positions(nn.Module):
    """Token embeddings plus something made of a parameter and of constant positions."""

    def __init__(self, p, use):
        super().__init__()
        self.tok, self.p, self.use = nn.Embedding(50, 16), nn.Parameter(p), use
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head((self.tok(x) + self.use(self.p, torch.arange(x.shape[1]))).tanh().mean(1))


USES = {
    "rows": (lambda p, i: p[i], (24, 16)),
    "rows of a product": (lambda p, i: (p * 3)[i], (24, 16)),
    "look-up in a function": (lambda p, i: F.embedding(i, p.tanh()), (24, 16)),
    "rows of a transpose": (lambda p, i: p.t()[i], (16, 16)),
    "rows of a view": (lambda p, i: p[0][i], (1, 24, 16)),
    "look-up with a padding row": (lambda p, i: F.embedding(i, p, padding_idx=0), (24, 16)),
    "negative padding row": (lambda p, i: F.embedding(i, p, padding_idx=-24), (24, 16)),
}


def tokens():
    torch.manual_seed(1)
    return [(torch.randint(0, 50, (6, 7)), torch.randint(0, 5, (6,)))]


@pytest.fixture(params=["the first sample", "no sample"])
def compared(request, monkeypatch):
    """The comparison with one sample alone hides mistakes here, so it is done without, too."""
    if request.param == "no sample":
        monkeypatch.setattr(per_sample_fallback.Comparison, "verdict", lambda *_: None)


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize("name", USES)
def test_parts_chosen_by_a_constant_index(name):
    use, shape = USES[name]
    torch.manual_seed(0)
    model = Positions(torch.randn(shape), use)
    engine_only(model, tokens())


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize(
    "use",
    [lambda p, i: p[: len(i)], lambda p, i: p.chunk(2, 0)[1][: len(i)], lambda p, i: p[i], lambda p, i: p[len(i)]],
)
def test_a_parameter_with_gaps_in_memory(use):
    torch.manual_seed(0)
    model = Positions(torch.randn(24, 40)[:, :16], use)
    assert not model.p.is_contiguous()
    engine_only(model, tokens())


def test_a_hook_on_a_part_of_a_large_parameter_is_found():
    def halved(p, i):
        part = p[: len(i)]
        part.register_hook(lambda g: g / 2)
        return part

    torch.manual_seed(0)
    model = Positions(torch.randn(1 << 15, 16), halved)  # only smaller ones are compared, but for parts
    with pytest.warns(UnlearnKitWarning, match="cannot be proven to keep its samples apart at p"):
        seen = estimate(model, tokens())
    assert distance(seen, oracle(model, tokens())) < 1e-5


@pytest.mark.parametrize("unlabelled", [[0], [0, 1, 2], [0, 1, 2, 3, 4, 5]])
def test_samples_without_a_gradient_prove_nothing(unlabelled, monkeypatch):
    """The engine is made to overlook the padding row; a sample whose label is left out does not show it."""
    monkeypatch.setattr(interceptor, "region_of", lambda f, args, _, *rest: region_of(f, args, {}, *rest))
    torch.manual_seed(0)
    model = Positions(torch.randn(24, 16), USES["look-up with a padding row"][0])
    data = [*tokens(), *tokens()]
    data[0][1][unlabelled] = -100
    with pytest.warns(UnlearnKitWarning, match="cannot be proven to keep its samples apart at p"):
        seen = estimate(model, data, CrossEntropy())
    assert distance(seen, oracle(model, data)) < 1e-5
