"""Embeddings with the options that torch offers, and bags of them."""

import copy
import warnings

import pytest
import torch
from fisher_oracle import SumOfSquares, distance, engine_only, estimate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unlearnkit import BatchedDiagonalFisher, DiagonalFisher, SketchedFisher, UnsupportedModelError
from unlearnkit.importance import fisher_statistics
from unlearnkit.importance.fisher.rules.embedding import EmbeddingRule


class Bag(nn.Module):
    """Bags of words, optionally with per-word weights."""

    def __init__(self, table, head=None, *, weighed=False, offsets=False):
        super().__init__()
        self.table, self.weighed, self.offsets = table, weighed, offsets
        self.head = head or nn.Linear(table.embedding_dim, 3)

    def forward(self, words):
        weights = words.to(self.table.weight.dtype) / 3 - 0.5 if self.weighed else None
        if self.offsets:
            starts = torch.arange(0, words.numel(), words.shape[1])
            return self.head(self.table(words.flatten(), starts))
        return self.head(self.table(words, per_sample_weights=weights))


def words(*sizes, length=5, vocabulary=6):
    torch.manual_seed(3)
    return [(torch.randint(0, vocabulary, (n, length)), torch.randn(n)) for n in sizes]


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=2)


@settings(max_examples=25)
@given(st.sampled_from(["sum", "mean"]), st.booleans(), st.booleans(), st.integers(1, 4), st.booleans(), SIZES)
def test_bags(mode, padded, weighed, length, sparse, sizes):
    torch.manual_seed(0)
    table = nn.EmbeddingBag(6, 3, mode=mode, padding_idx=2 if padded else None, sparse=sparse)
    model = Bag(table, weighed=weighed and mode == "sum").double()
    engine_only(model, words(*sizes, length=length), SumOfSquares(), 1e-10)


def test_bag_of_padding_only():
    model = Bag(nn.EmbeddingBag(6, 3, mode="mean", padding_idx=2)).double()
    data = words(4)
    data[0][0][1] = 2
    engine_only(model, data, SumOfSquares(), 1e-10)


def test_absolute_values_and_chunks_of_bags():
    torch.manual_seed(0)
    model, data = Bag(nn.EmbeddingBag(6, 300, mode="mean")), words(40, length=60)
    seen = fisher_statistics(
        model, data, objective=SumOfSquares(), absolute=True, fisher=DiagonalFisher(memory_budget=1)
    )
    expected = torch.zeros(6, 300)
    for x, y in zip(*data[0], strict=True):
        loss = SumOfSquares().losses(model, (x[None], y[None]))
        expected += torch.autograd.grad(loss.sum(), model.table.weight)[0].abs()
    assert torch.allclose(seen.absolute.totals["table.weight"], expected, rtol=1e-4)
    engine_only(model, data, SumOfSquares(), memory_budget=1)


def test_a_bag_whose_table_is_tied_to_the_head():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.EmbeddingBag(6, 3, mode="sum")

        def forward(self, x):
            return self.table(x).tanh() @ self.table.weight.t()

    engine_only(Tied().double(), words(4, 3), SumOfSquares(), 1e-10)


@pytest.mark.parametrize("offsets", [True, False])
def test_what_the_rule_leaves_is_run_by_vmap(offsets):
    torch.manual_seed(0)
    model = Bag(nn.EmbeddingBag(6, 3, mode="mean" if offsets else "max"), offsets=offsets).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = estimate(model, words(4, 3), SumOfSquares())
    assert [str(w.message) for w in caught if "cannot be proven" not in str(w.message) or not offsets] == []
    assert distance(seen, one_at_a_time(model, words(4, 3))) < 1e-10


def one_at_a_time(model, data):
    """Like the oracle, by ``backward``, which makes sparse gradients."""
    model = copy.deepcopy(model).double()
    totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in data:
        for i in range(len(x)):
            model.zero_grad()
            SumOfSquares().losses(model, (x[i : i + 1], y[i : i + 1].double())).sum().backward()
            for name, p in model.named_parameters():
                totals[name] += (p.grad.to_dense() if p.grad.is_sparse else p.grad).square()
    return totals


class Flat(nn.Module):
    def __init__(self, table, *, fold=False):
        super().__init__()
        self.table, self._fold = table, fold

    def forward(self, x):
        # The batch mean makes the whole model fall back to one sample at a time.
        y = self.table(x).flatten(1)
        return y - y.mean(0) * (len(x) > 1) if self._fold else y


@pytest.mark.parametrize("fold", [False, True])
def test_sparse_tables(fold):
    torch.manual_seed(0)
    model, data = Flat(nn.Embedding(6, 3, sparse=True), fold=fold), words(4, 3, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore" if fold else "error", message=".*cannot be proven")
        seen = estimate(model, data, SumOfSquares())
    assert distance(seen, one_at_a_time(model, data)) < 1e-5


@pytest.mark.parametrize("estimator", [BatchedDiagonalFisher(), SketchedFisher()])
def test_sparse_tables_in_other_estimators(estimator):
    torch.manual_seed(0)
    sparse, dense = Flat(nn.Embedding(6, 3, sparse=True)), Flat(nn.Embedding(6, 3))
    dense.load_state_dict(sparse.state_dict())
    one, two = (estimator.estimate(m, words(4, 3), objective=SumOfSquares()) for m in (sparse, dense))
    assert torch.allclose(one.totals["table.weight"], two.totals["table.weight"])


def test_the_gradient_of_a_sparse_table():
    model = Flat(nn.Embedding(6, 3, sparse=True))
    seen = fisher_statistics(model, words(4), objective=SumOfSquares(), gradient=True).gradient["table.weight"]
    SumOfSquares().losses(model, words(4)[0]).mean().backward()
    assert torch.allclose(seen, model.table.weight.grad.to_dense(), atol=1e-6)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_max_norm_that_would_renormalise_rows_is_refused(kind):
    torch.manual_seed(0)
    model, data = Flat(kind(6, 3, max_norm=1.0)), words(4, 3)
    before = model.table.weight.clone()
    with pytest.raises(UnsupportedModelError, match=r"rows longer than max_norm=1\.0"):
        estimate(model, data, SumOfSquares())
    assert torch.equal(model.table.weight, before)
    with torch.no_grad():
        for x, _ in data:
            model(x)
    engine_only(model, data, SumOfSquares())


class TiedTwice(nn.Module):
    """A table that is looked up once or twice, and is the head too."""

    def __init__(self, *, padding=None, times=1):
        super().__init__()
        self.table, self.times = nn.Embedding(6, 3, padding_idx=padding), times

    def forward(self, x):
        seen = self.table(x) + (self.table(x.flip(1)).tanh() if self.times == 2 else 0)
        return nn.functional.linear(seen.tanh(), self.table.weight)


def test_a_tied_embedding_by_hand():
    # One sample, one token v = 0, x = E_0 = (1, 2), y = E x, loss ½·Σ y² with E = ((1, 2), (3, 4)): y = (5, 11).
    # As a head: y xᵀ = ((5, 10), (11, 22)); as a table: Eᵀ y in row 0 = (38, 54). Added, then squared.
    model = TiedTwice().double()
    model.table = nn.Embedding.from_pretrained(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(), freeze=False)
    model.forward = lambda x: nn.functional.linear(model.table(x), model.table.weight)

    class HalfSquares(SumOfSquares):
        def losses(self, model, batch):
            return 0.5 * model(batch[0]).square().flatten(1).sum(1)

    data = [(torch.zeros(1, 1, dtype=torch.long),), (torch.zeros(3, 1, dtype=torch.long),)]
    total = DiagonalFisher().estimate(model, data[1:], objective=HalfSquares()).totals["table.weight"]
    assert total.tolist() == [[3 * 43.0**2, 3 * 64.0**2], [3 * 11.0**2, 3 * 22.0**2]]


@pytest.mark.parametrize("kernels", ["auto", "fixed"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("padding", [None, 2])
def test_a_tied_embedding_forms_no_whole_gradient(padding, times, kernels, monkeypatch):
    def refuse(*_):
        raise AssertionError("the whole table of each sample")

    monkeypatch.setattr(EmbeddingRule, "per_sample", refuse)
    torch.manual_seed(0)
    engine_only(TiedTwice(padding=padding, times=times).double(), words(4, 3), SumOfSquares(), 1e-10, kernels=kernels)


def test_a_tied_embedding_in_groups_with_signs():
    torch.manual_seed(0)
    model, data = TiedTwice().double(), words(5)
    found = fisher_statistics(
        model, data, objective=SumOfSquares(), key=lambda _: "abaab", absolute=True, gradient=True
    )
    alone = [one_sample(model, data[0], i) for i in range(5)]
    expected = sum(alone[i].square() for i in (0, 2, 3))
    assert torch.allclose(found.groups["a"].totals["table.weight"], expected, rtol=1e-12, atol=0)
    assert torch.allclose(found.absolute.totals["table.weight"], sum(g.abs() for g in alone), rtol=1e-12, atol=0)
    assert torch.allclose(found.gradient["table.weight"], sum(alone) / 5, rtol=1e-12, atol=1e-15)


def one_sample(model, batch, row):
    loss = SumOfSquares().losses(model, tuple(t[row : row + 1] for t in batch)).sum()
    return torch.autograd.grad(loss, model.table.weight)[0]
