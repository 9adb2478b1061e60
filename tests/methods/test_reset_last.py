"""`reset-last`: the last blocks anew, then training; and what a block is."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18, vit_b_16
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.reset_last import ResetLast, blocks_of
from unlearnkit_methods.retrain import Retrain

from unlearnkit import UnlearningInputs
from unlearnkit.models import resnet18_classifier, small_cnn
from unlearnkit.testing import parametrize_with_checks
from unlearnkit.unlearning import fresh_model

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05}


@parametrize_with_checks(
    [ResetLast(epochs=1), ResetLast(epochs=1, blocks=1, train="last"), ResetLast(epochs=1, train="last", reset=False)]
)
def test_contract(subject, law):
    law.check(subject, examples=6)


def names(model):
    """The blocks by the names of their modules."""
    by_id = {id(module): name for name, module in model.named_modules()}
    return ["+".join(by_id[id(part)] for part in block) for block in blocks_of(model)]


def test_layers_of_a_sequential_are_blocks_and_norm_layers_belong_to_the_block_before():
    assert names(small_cnn()) == ["features.0+features.1", "features.4+features.5", "head"]
    assert names(nn.Linear(2, 2)) == [""]


@pytest.mark.parametrize("where", ["", "backbone."])
def test_residual_blocks(where):
    with torch.device("meta"):
        model = resnet18_classifier(num_classes=5) if where else resnet18()
    stages = [f"{where}layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert names(model) == [f"{where}conv1+{where}bn1", *stages, "head.1" if where else "fc"]


def test_layers_of_a_transformer_are_blocks():
    with torch.device("meta"):
        model = vit_b_16()
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    assert names(model) == ["conv_proj", *layers[:-1], f"{layers[-1]}+encoder.ln", "heads.head"]


class Residual(nn.Module):
    """x + f(x), two of which make a model."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3))

    def forward(self, x):
        return x + self.body(x)


def residual():
    return nn.Sequential(Residual(), Residual(), nn.Linear(3, 4)).double()


def trained(train):
    """A loop of its own: the last two blocks anew, and steps of gradient descent in train mode."""
    model = made(1)
    fresh = fresh_model(model, UnlearningInputs(model_factory=residual))
    for i in (1, 2):
        model[i] = fresh[i]
    weights = [p for part in (model if train == "all" else model[1:]) for p in part.parameters()]
    model.train()
    if train == "last":
        model[0].eval()
    for x, y in batches(2) * 2:
        grads = torch.autograd.grad(cross_entropy(model(x), y), weights)
        with torch.no_grad():
            for p, grad in zip(weights, grads, strict=True):
                p.sub_(0.05 * grad)
    return model.eval()


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (10,), generator=generator)
    return [(x[:5], y[:5]), (x[5:], y[5:])]


def made(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = residual()
        model(torch.randn(50, 3, dtype=torch.float64))  # statistics that are not the initial ones
    return model.eval()


@pytest.mark.parametrize("train", ["all", "last"])
def test_equals_a_plain_training_loop(tiny, close, train):
    model, inputs = made(1), UnlearningInputs(retain_data=batches(2), model_factory=residual)
    report = ResetLast(blocks=2, train=train, epochs=2, **SGD).unlearn(model, inputs)
    close(model, trained(train))
    first = [t.changed for t in report.tensors if t.name.startswith("0.")]
    assert any(first) == (train == "all")
    assert any(name.startswith("0.") for name in report.buffers_changed) == (train == "all")
    assert not model.training


def test_without_reset_all_weights_trained_are_fine_tuning(tiny, close):
    one, _ = tiny.unlearned(ResetLast(reset=False, epochs=2), seed=5)
    other, _ = tiny.unlearned(FineTune(epochs=2), seed=5)
    close(one, other, rtol=0, atol=0)


def test_more_blocks_than_there_are_is_retraining(tiny, close):
    one, _ = tiny.unlearned(ResetLast(blocks=9, epochs=2), seed=5)
    other, _ = tiny.unlearned(Retrain(epochs=2), seed=5)
    close(one, other, rtol=0, atol=0)


def test_a_tied_weight_in_the_last_block_is_reset_and_trained_once():
    def tied():
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False))
        model[2].weight = model[0].weight
        return model

    model, data = tied(), [(torch.eye(2), torch.tensor([0, 1]))]
    report = ResetLast(blocks=1, train="last", epochs=1).unlearn(
        model, UnlearningInputs(retain_data=data, model_factory=tied)
    )
    assert [t.name for t in report.tensors] == ["0.weight"]
    assert report.changed == 4
    assert model[0].weight is model[2].weight
