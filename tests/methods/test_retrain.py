"""`retrain`: trains from scratch."""

import pytest
import torch
from unlearnkit_methods.retrain import Retrain

from unlearnkit import ConfigurationError, MismatchError
from unlearnkit.models.training import Training, train
from unlearnkit.testing import parametrize_with_checks
from unlearnkit.unlearning import fresh_model


@parametrize_with_checks([Retrain(epochs=1), Retrain(epochs=1, optimizer="sgd", weight_decay=0.1)])
def test_contract(subject, law):
    law.check(subject, examples=6)


def test_it_is_training_a_fresh_model(tiny, close):
    """Adam on the mean loss in train mode: what `unlearnkit.models.train` does with the same batches and seed."""
    model, report = tiny.unlearned(Retrain(epochs=3, learning_rate=0.01), seed=4)
    original = tiny.model(4)
    fresh = fresh_model(original, tiny.inputs(original))
    train(fresh, tiny.retain, training=Training(epochs=3, learning_rate=0.01, seed=0))
    close(model, fresh, rtol=0, atol=0)
    assert report.fraction == 1.0
    assert report.buffers_changed == ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert not model.training


def test_neither_the_original_weights_nor_the_forget_set_matter_and_the_seed_does(tiny, close):
    method = Retrain(epochs=1)
    one, _ = tiny.unlearned(method, seed=1)
    other, _ = tiny.unlearned(method, seed=2, forget_data=None)
    close(one, other, rtol=0, atol=0)

    def same_weights(a, b):
        return torch.equal(a[4].weight, b[4].weight)

    reseeded = tiny.model(1)
    method.unlearn(reseeded, tiny.inputs(reseeded, seed=9))
    assert not same_weights(one, reseeded)


def test_frozen_parameters_stay_and_the_rest_is_trained_around_them(tiny):
    def freeze(model):
        model[0].requires_grad_(requires_grad=False)

    before = tiny.model(1)
    model, _ = tiny.unlearned(Retrain(epochs=1), seed=1, prepare=freeze)
    assert torch.equal(model[0].weight, before[0].weight)
    free, _ = tiny.unlearned(Retrain(epochs=1), seed=1)
    assert not torch.equal(model[4].weight, free[4].weight)


def test_a_factory_is_needed_and_must_make_another_model(tiny):
    with pytest.raises(ConfigurationError, match="expected model_factory"):
        tiny.unlearned(Retrain(), model_factory=None)
    model = tiny.model()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(MismatchError, match="saw the model's"):
        Retrain().unlearn(model, tiny.inputs(model, model_factory=lambda: model))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
