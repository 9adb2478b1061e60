"""Features of a layer, and a linear classifier on them."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from unlearnkit import Objective
from unlearnkit.evaluation.metrics.features import features_of, linear_probe
from unlearnkit.evaluation.model_outputs import InapplicableError, some_rows
from unlearnkit.models.parameters import digest
from unlearnkit.models.zoo import small_cnn
from unlearnkit.utils.errors import ConfigurationError


def data(n=30):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(8), (torch.arange(n) % 3).split(8), strict=True))


def test_features_are_the_input_of_the_last_linear_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3)).train()
    before, rng = digest(model), torch.get_rng_state()
    values, labels = features_of(model, data())
    assert digest(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    assert values == pytest.approx(model.eval()[:4](x).detach().double().numpy())
    assert labels.tolist() == y.tolist()


def test_last_layer_is_the_last_called_not_the_last_defined():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(5, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.body(x))

    assert features_of(Backwards(), data())[0].shape == (30, 5)
    assert features_of(Backwards(), data(), layer="body")[0].shape == (30, 4)


def test_features_of_images_are_flattened():
    batch = [(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))]
    assert features_of(small_cnn(width=2), batch)[0].shape == (2, 4 * 4)
    assert features_of(small_cnn(width=2), batch, layer="features")[0].shape == (2, 64)


def test_models_without_features():
    with pytest.raises(InapplicableError, match="no Linear layer"):
        features_of(nn.Identity(), data())
    with pytest.raises(InapplicableError, match=r"no layer 'haed'; did you mean 'head'\?"):
        features_of(small_cnn(), data(), layer="haed")
    with pytest.raises(InapplicableError, match="the split is empty"):
        features_of(nn.Linear(4, 3), [])
    with pytest.raises(InapplicableError, match="no row of features"):
        features_of(nn.Linear(4, 3), [(torch.zeros(2, 4), torch.zeros(2, 3))])

    class Size(Objective):
        def losses(self, model, batch):
            return model(batch[0]).square().sum(1)

    with pytest.raises(InapplicableError, match="is no classification"):
        features_of(nn.Linear(4, 3), data(), objective=Size())


def test_the_hooks_are_removed_after_an_exception():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x):
            self.inner(x)
            raise OSError

    model = Breaks()
    with pytest.raises(OSError):
        features_of(model, data())
    assert not model.inner._forward_pre_hooks


def test_the_probe_is_the_regression_of_scikit_learn_on_standardised_features():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 90)
    learn = random.normal(size=(90, 5)) * 7 + labels[:, None] * 4
    judge, right = random.normal(size=(40, 5)) * 7, random.integers(0, 3, 40)
    mean, sd = learn.mean(0), learn.std(0)
    theirs = LogisticRegression(max_iter=5000).fit((learn - mean) / sd, labels)
    mine = linear_probe(learn, labels).score(judge, right)
    assert mine == pytest.approx(theirs.score((judge - mean) / sd, right))


def test_a_probe_needs_two_classes():
    with pytest.raises(ConfigurationError, match="at least two classes"):
        linear_probe(np.zeros((3, 1)), np.zeros(3, int))


def test_some_of_the_samples():
    some = some_rows(10, 4, seed=0).tolist()
    assert some == some_rows(10, 4, seed=0).tolist()
    assert len(set(some)) == 4
    assert set(some) < set(range(10))
    assert some_rows(10, 10, seed=0).tolist() == list(range(10))
