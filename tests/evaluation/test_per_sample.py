"""One number per sample from that sample's own outputs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logit

from unlearnkit.evaluation.per_sample import entropies, label_losses, margins, softmax_of

Z = np.random.default_rng(0).normal(scale=3, size=(20, 4))
Y = np.random.default_rng(1).integers(0, 4, size=20)


def test_worked_example():
    z = [[0.0, math.log(3.0)]]  # p = (1/4, 3/4)
    assert softmax_of(z)[0] == pytest.approx([0.25, 0.75])
    assert entropies(softmax_of(z))[0] == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert label_losses(z, [0])[0] == pytest.approx(math.log(4))
    assert margins(z, [1])[0] == pytest.approx(math.log(3))


def test_they_agree_with_float64_one_sample_at_a_time():
    for i, (z, y) in enumerate(zip(Z, Y, strict=True)):
        p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
        assert softmax_of(Z)[i] == pytest.approx(p)
        assert entropies(softmax_of(Z))[i] == pytest.approx(-sum(v * math.log(v) for v in p))
        assert label_losses(Z, Y)[i] == pytest.approx(-math.log(p[y]))
        assert margins(Z, Y)[i] == pytest.approx(logit(p[y]), rel=1e-9)


def test_losses_are_those_of_torch():
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(Z), torch.from_numpy(Y), reduction="none")
    assert label_losses(Z, Y) == pytest.approx(expected.numpy(), abs=1e-12)


@given(st.integers(0, 19), st.integers(0, 19))
def test_no_score_depends_on_batch_mates(i, j):
    p, rows = softmax_of(Z), [i, j]
    assert entropies(p[rows])[0] == entropies(p[[i]])[0]
    assert label_losses(Z[rows], Y[rows])[0] == label_losses(Z[[i]], Y[[i]])[0]
    assert margins(Z[rows], Y[rows])[0] == margins(Z[[i]], Y[[i]])[0]


def test_certainty_does_not_overflow():
    sure = [[900.0, 0.0, 0.0]]
    assert margins(sure, [0])[0] == pytest.approx(900 - math.log(2))
    assert label_losses(sure, [1])[0] == pytest.approx(900)
    assert entropies(softmax_of(sure))[0] == 0
