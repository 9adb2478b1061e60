"""`finetune`: more training on the retain set."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from unlearnkit_methods.finetune import FineTune

from unlearnkit import ConfigurationError
from unlearnkit.testing import parametrize_with_checks

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05}


@parametrize_with_checks([FineTune(epochs=1), FineTune(epochs=1, mode="eval", optimizer="sgd", weight_decay=0.1)])
def test_contract(subject, law):
    law.check(subject, examples=6)


def test_equals_a_plain_training_loop(tiny, close):
    model, _ = tiny.unlearned(FineTune(epochs=2, mode="eval", **SGD))
    losses = [lambda m, b=batch: cross_entropy(m(b[0]), b[1]) for batch in tiny.retain * 2]
    close(model, tiny.steps(tiny.model(), losses))


def test_forget_set_is_never_read(tiny, close):
    one, _ = tiny.unlearned(FineTune(epochs=1))
    other, _ = tiny.unlearned(FineTune(epochs=1), forget_data=None)
    close(one, other, rtol=0, atol=0)


def test_train_mode_changes_batchnorm_statistics_and_reports_it(tiny):
    before = tiny.model()
    model, report = tiny.unlearned(FineTune(epochs=1))
    assert report.buffers_changed == ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert not torch.equal(model[1].running_mean, before[1].running_mean)
    assert not model.training
    model, report = tiny.unlearned(FineTune(epochs=1, mode="eval"))
    assert report.buffers_changed == ()
    assert torch.equal(model[1].running_mean, before[1].running_mean)


def test_the_retain_set_is_needed(tiny):
    with pytest.raises(ConfigurationError, match="expected retain_data"):
        tiny.unlearned(FineTune(), retain_data=None)
