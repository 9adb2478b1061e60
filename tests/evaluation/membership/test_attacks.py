"""Population membership attacks, RMIA, and the scores of attacks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from unlearnkit import EvaluationInputs
from unlearnkit.evaluation.membership.attacks import (
    ConfidenceAttack,
    EntropyAttack,
    LossAttack,
    attack_success,
    population_attack,
    rmia_scores,
    unseen_halves,
)
from unlearnkit.evaluation.model_outputs import ModelOutputs, Outputs
from unlearnkit.evaluation.per_sample import entropies, label_losses, softmax_of

KINDS = ["entropy", "loss", "confidence"]


def samples(seed, n=150, sure=2.0, classes=3):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, size=n)
    logits = random.normal(size=(n, classes))
    logits[np.arange(n), labels] += sure
    return Outputs(logits=logits, labels=labels)


def part(of, rows):
    return Outputs(logits=of.logits[rows], labels=of.labels[rows])


def test_success_agrees_with_counted_pairs():
    random = np.random.default_rng(0)
    m, n = random.integers(0, 9, 40), random.integers(0, 7, 120)
    pairs = [(a > b) + 0.5 * (a == b) for a in m for b in n]
    assert attack_success(m, n).auc == pytest.approx(np.mean(pairs))
    assert attack_success(m, n).auc == pytest.approx(roc_auc_score([1] * 40 + [0] * 120, [*m, *n]))
    # At most one of 120 non-members may be called a member.
    best = max((m >= t).mean() for t in range(10) if (n >= t).mean() <= 0.01)
    assert attack_success(m, n).tpr == pytest.approx(best)


def test_too_few_nonmembers_for_one_percent():
    found = attack_success([1.0] * 200, [0.0] * 99)
    assert (found.auc, found.tpr) == (1.0, None)
    assert "at least 100 non-members, saw 99" in found.reason
    assert attack_success([1.0], [0.0] * 100).tpr == 1.0


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_equal_scores_have_auc_one_half(scores):
    assert attack_success(scores, scores).auc == pytest.approx(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_attack_detects_members_with_higher_confidence(kind):
    attack = population_attack(kind, members=samples(0, sure=8), nonmembers=samples(1, sure=1))
    assert attack_success(attack(samples(2, sure=8)), attack(samples(3, sure=1))).auc > 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_give_auc_one_half(kind):
    attack = population_attack(kind, members=samples(0), nonmembers=samples(1))
    assert 0.35 < attack_success(attack(samples(2)), attack(samples(3))).auc < 0.65


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_batch_mates_or_on_the_run(kind):
    whole = samples(4)
    attacks = [population_attack(kind, members=samples(0, sure=5), nonmembers=samples(1)) for _ in range(2)]
    scores = attacks[0](whole)
    assert np.array_equal(scores, attacks[1](whole))
    for row in (0, 7):
        assert attacks[0](part(whole, [row]))[0] == pytest.approx(scores[row], abs=1e-12)
    assert attacks[0](part(whole, [9, 3])) == pytest.approx(scores[[9, 3]], abs=1e-12)


@pytest.mark.parametrize(("kind", "feature"), [("entropy", entropies), ("loss", label_losses)])
def test_it_is_logistic_regression(kind, feature):
    members, nonmembers, other = samples(0, sure=5), samples(1), samples(2)

    def column(of):
        return feature(softmax_of(of.logits)) if kind == "entropy" else feature(of.logits, of.labels)

    x = np.concatenate([column(members), column(nonmembers)])
    truth = np.repeat([1, 0], 150)
    plain = LogisticRegression(class_weight="balanced").fit(((x - x.mean()) / x.std())[:, None], truth)
    expected = plain.decision_function(((column(other) - x.mean()) / x.std())[:, None])
    attack = population_attack(kind, members=members, nonmembers=nonmembers)
    assert attack(other) == pytest.approx(expected, abs=1e-6)


def test_class_imbalance_does_not_move_the_threshold():
    few = population_attack("loss", members=samples(0, n=1000, sure=4), nonmembers=samples(1, n=50, sure=1))
    right = (few(samples(2, sure=1)) < 0).mean()
    assert right > 0.5


def rmia_oracle(x, refs_x, z, refs_z, gamma, a):
    """A loop over all pairs."""

    def ratio(p, refs):
        return p / (((1 + a) * sum(refs) / len(refs) + 1 - a) / 2)

    return [
        np.mean([ratio(x[i], refs_x[:, i]) / ratio(z[j], refs_z[:, j]) >= gamma for j in range(len(z))])
        for i in range(len(x))
    ]


@pytest.mark.parametrize("models", [1, 4])
def test_rmia_equals_a_loop_over_all_pairs(models):
    random = np.random.default_rng(models)
    x, z = random.uniform(0.05, 1, 12), random.uniform(0.05, 1, 30)
    refs_x, refs_z = random.uniform(0.05, 1, (models, 12)), random.uniform(0.05, 1, (models, 30))
    for gamma, a in ((1.0, 1.0), (2.0, 0.3), (4.0, 0.0)):
        found = rmia_scores(x, refs_x, population=z, population_references=refs_z, gamma=gamma, a=a)
        assert found == pytest.approx(rmia_oracle(x, refs_x, z, refs_z, gamma, a))


def test_rmia_worked_example():
    # a = 1: p(x) is the reference itself. LR = (0.8/0.2)/(0.5/0.5) = 4 and (0.8/0.2)/(0.9/0.3) = 4/3.
    call = {"population": [0.5, 0.9], "population_references": [[0.5, 0.3]], "a": 1.0}
    assert rmia_scores([0.8], [[0.2]], gamma=2.0, **call).tolist() == [0.5]
    assert rmia_scores([0.8], [[0.2]], gamma=1.0, **call).tolist() == [1.0]
    assert rmia_scores([0.8], [[0.2]], gamma=5.0, **call).tolist() == [0.0]


def test_rmia_of_a_model_against_itself_is_one_half():
    random = np.random.default_rng(0)
    p, q, z = random.uniform(0.3, 1, 50), random.uniform(0.3, 1, 50), random.uniform(0.3, 1, 80)
    for a in (0.3, 1.0):
        call = {"population": z, "population_references": [z], "a": a, "gamma": 1.0}
        members, others = rmia_scores(p, [p], **call), rmia_scores(q, [q], **call)
        assert 0.3 < attack_success(members, others).auc < 0.7
    assert attack_success(members, others).auc == 0.5  # a = 1: every ratio is 1


def test_unseen_samples_are_of_the_forgotten_classes():
    """Others would be told apart by their class, not by membership."""
    x = torch.eye(3).repeat(20, 1)
    y = torch.arange(60) % 3
    of_class = [(x[y == 2], y[y == 2])]
    splits = {"forget-train": of_class, "retain-train": [(x, y)], "retain-test": [(x, y)]}
    outputs = ModelOutputs(EvaluationInputs(model=torch.nn.Identity(), splits=splits))
    learnt, judged = unseen_halves(outputs, torch.nn.Identity(), seed=0)
    assert set(judged.labels) == {2}
    assert len(learnt) == 30
    assert set(learnt.labels) == {0, 1, 2}


@pytest.mark.parametrize("attack", [EntropyAttack(), LossAttack(), ConfidenceAttack()])
def test_a_model_that_is_less_sure_of_the_forgotten_classes_gives_nobody_away(attack):
    """Unseen samples have each class as often as the forget set, so only membership tells them apart."""
    labels = torch.arange(600) % 2
    logits = torch.where(labels == 0, 4.0, 1.0)[:, None] * torch.eye(2)[labels]
    rows = torch.cat([torch.arange(0, 20, 2), torch.arange(1, 180, 2)])
    forget, everything = (logits[rows], labels[rows]), (logits, labels)
    splits = {"forget-train": [forget], "retain-train": [everything], "retain-test": [everything]}
    inputs = EvaluationInputs(model=torch.nn.Identity(), splits=splits)
    zeros, ones = np.bincount(unseen_halves(ModelOutputs(inputs), inputs.model, seed=0)[1].labels)
    assert zeros == round(ones / 9)
    assert attack.measure(inputs)["AUC"] == pytest.approx(0.5, abs=0.01)
