"""Parity with the notebook, cell by cell, and why the batched estimate is not the Fisher information."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from unlearnkit_methods.binary_mask import BinaryMask
from unlearnkit_methods.prune import Prune
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import (
    BatchedDiagonalFisher,
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    Importance,
    MismatchError,
    Pipeline,
    PluginManager,
    UnlearningInputs,
)

CE = CrossEntropy(targets=2)  # the batches are (image, fine label, coarse label)
PARITY = BatchedDiagonalFisher(weights="equal")


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3)).to(dtype)


def loader(batches, size=3, seed=1, dtype=torch.float32):
    """Batches as the notebook's loader makes them: (image, fine label, coarse label)."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 4, generator=generator).to(dtype),
            torch.randint(0, 9, (size,), generator=generator),
            torch.randint(0, 3, (size,), generator=generator),
        )
        for _ in range(batches)
    ]


# The notebook's cells. The network is in eval mode there, too.


def notebook_fisher(model, batches, *, normalise):
    model = copy.deepcopy(model).eval()
    criterion = nn.CrossEntropyLoss()
    fisher = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for image, _, coarse in batches:
        model.zero_grad()
        criterion(model(image), coarse).backward()
        for n, p in model.named_parameters():
            fisher[n] += p.grad**2
    return {n: f / len(batches) if normalise else f for n, f in fisher.items()}


def notebook_edit(model, forget, retain, update):
    """Apply one of the three updates; return the model, the printed fraction, and that of weights that moved."""
    model, printed, moved, size = copy.deepcopy(model), 0, 0, 0
    with torch.no_grad():
        for n, p in model.named_parameters():
            before = p.clone()
            printed += int(update(p, forget[n], retain[n]).sum())
            moved += int((p != before).sum())
            size += p.numel()
    return model, printed / size, moved / size


def naive_pruning(p, forget, _):
    mask = forget > 0
    p[mask] = 0
    return mask


def binary_mask(lam):
    def update(p, forget, retain):
        mask = forget > lam * retain
        p[mask] = 0
        return mask

    return update


def dampening(alpha, lam):
    def update(p, forget, retain):
        mask = forget > alpha * retain
        beta = torch.minimum(lam * retain / (forget + 1e-8), torch.ones_like(p))
        p[mask] = (p * beta)[mask]
        return mask

    return update


def ssd(alpha, lam):
    return SelectiveSynapticDampening(alpha=alpha, lam=lam, epsilon=1e-8)


def run(model, method, forget, retain, *, normalise, estimator=PARITY):
    pipeline = Pipeline(
        unlearner=method,
        estimator=estimator,
        normalise=normalise,
        reference_role="retain",
        plugins=PluginManager(entry_points=False),
    )
    model = copy.deepcopy(model)
    return model, pipeline.run(model, forget=forget, reference=retain, objective=CE)


def assert_same(found, want):
    for (n, p), q in zip(found.named_parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9, msg=lambda m, n=n: f"{n}: {m}")


# Cell: the Fisher loop


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("sizes", [(3, 3, 3), (3, 3, 1)])
def test_the_fisher_loop(normalise, sizes):
    model = net()
    batches = [b for i, size in enumerate(sizes) for b in loader(1, size, seed=i)]
    found = PARITY.estimate(model, batches, objective=CE)
    got = found.mean() if normalise else found.unnormalised().mean()
    want = notebook_fisher(model, batches, normalise=normalise)
    assert found.count == 3
    for n, total in want.items():
        torch.testing.assert_close(got[n], total, rtol=1e-6, atol=1e-12)


# Cells: the three updates and the printed fractions

UPDATES = {
    "prune": (Prune(), naive_pruning),
    "mask 0.5": (BinaryMask(lam=0.5), binary_mask(0.5)),
    "mask 1": (BinaryMask(lam=1.0), binary_mask(1.0)),
    "mask 97": (BinaryMask(lam=97.0), binary_mask(97.0)),
    "ssd 10, 1": (ssd(10.0, 1.0), dampening(10.0, 1.0)),
    "ssd 0.5, 1": (ssd(0.5, 1.0), dampening(0.5, 1.0)),
    "ssd 1, 0.1": (ssd(1.0, 0.1), dampening(1.0, 0.1)),
}


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("method", "update"), UPDATES.values(), ids=UPDATES.keys())
def test_the_updates_and_the_printed_fraction(method, update, normalise):
    model, forget, retain = net(), loader(2, seed=1), loader(7, seed=2)
    found, report = run(model, method, forget, retain, normalise=normalise)
    importances = (notebook_fisher(model, batches, normalise=normalise) for batches in (forget, retain))
    want, printed, moved = notebook_edit(model, *importances, update)
    assert_same(found, want)
    assert report.fraction == pytest.approx(moved, abs=1e-12)
    if getattr(method, "alpha", 1.0) >= getattr(method, "lam", 0.0) or isinstance(method, BinaryMask):
        assert report.fraction == pytest.approx(printed, abs=1e-12)
    else:  # with α < λ the notebook also counts weights that min(λ·F_r/F_f, 1) leaves unchanged
        assert report.fraction < printed


def test_the_cases_above_select_something_and_not_everything():
    model, forget, retain = net(), loader(2, seed=1), loader(7, seed=2)
    fractions = {
        name: run(model, method, forget, retain, normalise=True)[1].fraction for name, (method, _) in UPDATES.items()
    }
    assert fractions["prune"] > fractions["mask 0.5"] > fractions["mask 1"] > fractions["mask 97"] >= 0
    assert 0 < fractions["ssd 0.5, 1"] < 1


@pytest.mark.parametrize(("alpha", "lam"), [(10.0, 1.0), (0.02, 0.01), (0.005, 0.004)])
def test_un_normalised_is_normalised_times_97_for_2_forget_and_194_retain_batches(alpha, lam):
    dtype = torch.float64
    model, forget, retain = net(dtype), loader(2, seed=1, dtype=dtype), loader(194, seed=2, dtype=dtype)
    sums, by_sums = run(model, SelectiveSynapticDampening(alpha=alpha, lam=lam), forget, retain, normalise=False)
    means, by_means = run(
        model, SelectiveSynapticDampening(alpha=97 * alpha, lam=97 * lam), forget, retain, normalise=True
    )
    assert [t.changed for t in by_sums.tensors] == [t.changed for t in by_means.tensors]
    for p, q in zip(sums.parameters(), means.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)
    if alpha < 1:
        assert by_sums.changed > 0


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(*[st.floats(-10, 10)] + [st.floats(0, 100)] * 2), min_size=1, max_size=8),
    st.floats(0.01, 20),
    st.floats(0.01, 20),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_the_identity_for_any_number_of_batches(rows, alpha, lam, forget_batches, retain_batches):
    theta, f, r = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    ratio = retain_batches / forget_batches
    near = ((f - alpha * r).abs() < 1e-6 * (1 + f)) & (f > 0)  # on the edge of the selection rounding decides
    theta, f, r = theta[~near], f[~near], r[~near]
    sums = SelectiveSynapticDampening(alpha=alpha, lam=lam).edit(theta, f, r)
    method = SelectiveSynapticDampening(alpha=alpha * ratio, lam=lam * ratio)
    torch.testing.assert_close(method.edit(theta, f / forget_batches, r / retain_batches), sums, rtol=1e-9, atol=0)


# Why it is not the Fisher information


def test_batch_of_two_samples_that_cancel():
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    batch = (torch.tensor([[2.0], [2.0]]), torch.tensor([0, 1]))
    # Gradients of the samples: (−1, 1) and (1, −1); their mean is 0, the sum of their squares 2.
    assert PARITY.estimate(model, [batch], objective=CrossEntropy()).totals["weight"].tolist() == [[0.0], [0.0]]
    assert DiagonalFisher().estimate(model, [batch], objective=CrossEntropy()).totals["weight"].tolist() == [
        [2.0],
        [2.0],
    ]


def test_it_depends_on_batch_size_and_order_and_records_both():
    model = net()
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    order = torch.arange(12).reshape(3, 4).t().reshape(-1)  # the same samples in other batches

    def measure(rows, size):
        return PARITY.estimate(
            model, list(zip(x[rows].split(size), y[rows].split(size), strict=True)), objective=CrossEntropy()
        )

    one, small, shuffled = measure(slice(None), 4), measure(slice(None), 2), measure(order, 4)
    assert (one.trail.describe(), small.trail.describe()) == ("3 × 4", "6 × 2")
    assert one.trail.sizes == shuffled.trail.sizes
    assert one.trail.order != shuffled.trail.order
    for other in (small, shuffled):
        assert not torch.allclose(one.mean()["0.weight"], other.mean()["0.weight"], rtol=0.01)


def test_batches_of_one_sample_are_the_fisher():
    model, batches = net(torch.float64), loader(5, size=1, dtype=torch.float64)
    for estimator in (PARITY, BatchedDiagonalFisher(), BatchedDiagonalFisher(reduction="sum")):
        found = estimator.estimate(model, batches, objective=CE)
        want = DiagonalFisher().estimate(model, batches, objective=CE)
        assert found.count == want.count
        for n, total in want.totals.items():
            torch.testing.assert_close(found.totals[n], total, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weights", ["size", "equal"])
def test_weights_and_reductions_against_their_definitions(weights, reduction):
    model = net(torch.float64).eval()
    batches = [*loader(2, 4, dtype=torch.float64), *loader(1, 1, seed=5, dtype=torch.float64)]
    want = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for image, _, coarse in batches:
        model.zero_grad()
        nn.CrossEntropyLoss(reduction=reduction)(model(image), coarse).backward()
        for n, p in model.named_parameters():
            want[n] += (len(image) if weights == "size" else 1) * p.grad**2
    model.zero_grad()
    found = BatchedDiagonalFisher(weights=weights, reduction=reduction).estimate(model, batches, objective=CE)
    assert (found.count, found.samples) == (9 if weights == "size" else 3, 9)
    for n, total in want.items():
        torch.testing.assert_close(found.totals[n], total, rtol=1e-9, atol=1e-15)


def test_a_last_smaller_batch_weighs_less_by_size_and_as_much_by_count():
    model = net(torch.float64)
    full, last = loader(1, 9, dtype=torch.float64), loader(1, 1, seed=5, dtype=torch.float64)

    def mean(weights, batches):
        return BatchedDiagonalFisher(weights=weights).estimate(model, batches, objective=CE).mean()["0.weight"]

    a, b = mean("equal", full), mean("equal", last)
    torch.testing.assert_close(mean("size", full + last), 0.9 * a + 0.1 * b, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(mean("equal", full + last), 0.5 * a + 0.5 * b, rtol=1e-9, atol=1e-15)


# What is refused


def test_batch_sizes_that_differ_are_refused_and_a_single_smaller_batch_is_not():
    model = net()
    forget, small, retain = loader(2, 4), loader(1, 3), loader(5, 2)
    said = r"(?s)different kinds.*batch size: 4 against 2 .*estimate both with one batch size"
    with pytest.raises(MismatchError, match=said):
        run(model, ssd(1.0, 1.0), forget, retain, normalise=True)
    assert run(model, ssd(1.0, 1.0), small, loader(5, 4), normalise=True)[1].size == 67
    with pytest.raises(MismatchError, match=r"batch size: 4 against 2"):
        PARITY.estimate(model, forget, objective=CE) + PARITY.estimate(model, retain, objective=CE)


@pytest.mark.parametrize("other", [DiagonalFisher(), BatchedDiagonalFisher(), BatchedDiagonalFisher(reduction="sum")])
def test_other_kinds_are_refused(other):
    model = net()
    one = PARITY.estimate(model, loader(2), objective=CE)
    with pytest.raises(MismatchError, match=r"options: |unit: "):
        one.merge(other.estimate(model, loader(2), objective=CE))
    with pytest.raises(MismatchError, match=r"different kinds"):
        ssd(1.0, 1.0).unlearn(
            model, UnlearningInputs(forget=one, reference=other.estimate(model, loader(2), objective=CE))
        )


@pytest.mark.parametrize("options", [{"weights": "count"}, {"reduction": "none"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ConfigurationError, match=r"BatchedDiagonalFisher.(weights|reduction): expected one of"):
        BatchedDiagonalFisher(**options)


def test_a_parameter_that_is_not_used_counts_zero():
    model = net()
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    found = PARITY.estimate(model, loader(2), objective=CE)
    assert isinstance(found, Importance)
    assert found.totals["spare"].tolist() == [0.0, 0.0]
