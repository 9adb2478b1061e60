"""`salun`: trains only the salient weights, on wrong labels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from unlearnkit_methods.salun import SalUn, saliency

from unlearnkit import ConfigurationError, CrossEntropy, DiagonalFisher
from unlearnkit.testing import parametrize_with_checks
from unlearnkit.unlearning import other_labels

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05, "mode": "eval"}
searched = settings(max_examples=60, derandomize=True, deadline=None, database=None)


@parametrize_with_checks([SalUn(epochs=1), SalUn(epochs=1, share=0.1, mode="eval", optimizer="sgd", weight_decay=0.1)])
def test_contract(subject, law):
    law.check(subject, examples=6)


@searched
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.5]), min_size=1, max_size=12), st.floats(0.01, 1.0))
def test_the_mask_against_a_sorted_list(values, share):
    totals = {"a": torch.tensor(values[: len(values) // 2]), "b": torch.tensor(values[len(values) // 2 :])}
    found = [free for mask in saliency(totals, share=share).values() for free in mask.tolist()]
    smallest = sorted(values, reverse=True)[max(1, round(share * len(values))) - 1]
    assert found == [value >= smallest and value > 0 for value in values]


def test_the_median_selects_half_of_all_weights_together_not_of_each_tensor():
    totals = {"a": torch.tensor([9.0, 8.0, 7.0]), "b": torch.tensor([1.0, 2.0, 3.0])}
    assert [m.tolist() for m in saliency(totals, share=0.5).values()] == [[True] * 3, [False] * 3]


@searched
@given(st.lists(st.sampled_from([-100, 0, 1, 2, 3, 4]), min_size=1, max_size=8), st.integers(5, 9), st.integers(0, 99))
def test_a_wrong_label_is_another_class(labels, classes, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = other_labels(torch.tensor(labels), classes=classes).tolist()
    for label, wrong in zip(labels, drawn, strict=True):
        assert wrong == -100 if label == -100 else (wrong != label and 0 <= wrong < classes)


def test_wrong_labels_are_uniform_over_the_other_classes():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        counts = other_labels(torch.full((3000,), 2), classes=4).bincount(minlength=4).tolist()
    assert counts[2] == 0
    assert all(abs(counts[c] - 1000) < 120 for c in (0, 1, 3))


def test_one_class_has_no_wrong_label():
    with pytest.raises(ConfigurationError, match="at least 2 classes, saw 1"):
        other_labels(torch.tensor([0]), classes=1)


def test_equals_a_plain_training_loop(tiny, close):
    model, _ = tiny.unlearned(SalUn(epochs=2, share=0.4, alpha=0.5, **SGD))
    oracle, inputs = tiny.model(), tiny.inputs(tiny.model())
    every = torch.cat([t.flatten() for t in inputs.forget.totals.values()])
    threshold = every.sort(descending=True).values[round(0.4 * len(every)) - 1]
    start = {name: p.detach().clone() for name, p in oracle.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(inputs.seed)
        for _ in range(2):
            for x, y in [*((x, (y + torch.randint(1, 4, y.shape)) % 4) for x, y in tiny.forget)]:
                tiny.steps(oracle, [lambda m, x=x, y=y: cross_entropy(m(x), y)])
                put_back(oracle, start, inputs, threshold)
            for x, y in tiny.retain:
                tiny.steps(oracle, [lambda m, x=x, y=y: 0.5 * cross_entropy(m(x), y)])
                put_back(oracle, start, inputs, threshold)
    close(model, oracle)


def put_back(model, start, inputs, threshold):
    with torch.no_grad():
        for name, p in model.named_parameters():
            masked = inputs.forget.totals[name] < threshold
            p[masked] = start[name][masked]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_weights_outside_the_mask_keep_their_bits(tiny, optimizer):
    before = tiny.model()
    method = SalUn(epochs=3, share=0.3, optimizer=optimizer, learning_rate=0.05, weight_decay=0.1)
    model, report = tiny.unlearned(method)
    masks = saliency(tiny.inputs(before).forget.totals, share=0.3)
    for (name, was), now in zip(before.named_parameters(), model.parameters(), strict=True):
        moved = was.view(torch.int64) != now.view(torch.int64)
        assert not bool((moved & ~masks[name]).any()), name
    assert 0 < report.changed <= sum(int(mask.sum()) for mask in masks.values())


def test_measured_importance_changes_the_labels_of_the_forget_set(tiny):
    model = tiny.model()
    forget = DiagonalFisher().estimate(model, tiny.forget, objective=CrossEntropy(), role="forget")

    def loss():
        with torch.no_grad():
            return sum(float(cross_entropy(model(x), y)) for x, y in tiny.forget)

    before = loss()
    SalUn(epochs=20, learning_rate=0.01, alpha=0.0, mode="eval").unlearn(model, tiny.inputs(model, forget=forget))
    assert loss() > before
