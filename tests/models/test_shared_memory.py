"""Parameters that share memory: tied ones are one parameter, others are refused."""

import copy

import pytest
import torch
from fisher_oracle import oracle
from torch import nn
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import CrossEntropy, DiagonalFisher, Pipeline, UnlearningInputs, UnsupportedModelError
from unlearnkit.models import digest, trainable
from unlearnkit.models.parameters import parameters

TOKENS, WIDTH = 11, 6


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self, tie):
        super().__init__()
        torch.manual_seed(0)
        self.enc, self.mid = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dec = nn.Linear(WIDTH, TOKENS, bias=False)
        tie(self)

    def forward(self, t):
        return self.dec(torch.tanh(self.mid(self.enc(t).mean(1))))


def by_object(m):
    m.dec.weight = m.enc.weight


def by_data(m):
    m.dec.weight.data = m.enc.weight.data


def by_view(m):
    m.dec.weight = nn.Parameter(m.enc.weight.detach().view(TOKENS, WIDTH))


ALIASES = [by_data, by_view]


def data(count=3):
    torch.manual_seed(1)
    return [(torch.randint(0, TOKENS, (4, 5)), torch.randint(0, TOKENS, (4,))) for _ in range(count)]


@pytest.mark.parametrize("tie", ALIASES)
def test_weights_on_one_memory_are_one_parameter(tie):
    model, proper = Tied(tie), Tied(by_object)
    assert list(parameters(model)) == list(trainable(model)) == list(parameters(proper))
    assert digest(model) == digest(proper)
    seen = DiagonalFisher().estimate(model, data(), objective=CrossEntropy())
    for name, total in oracle(proper, data()).items():
        torch.testing.assert_close(seen.totals[name], total.float(), rtol=1e-4, atol=1e-9)
    assert model.dec.weight is not model.enc.weight
    assert model.dec.weight.data_ptr() == model.enc.weight.data_ptr()


@pytest.mark.parametrize("tie", ALIASES)
@pytest.mark.parametrize("method", [SelectiveSynapticDampening(alpha=0.5, lam=0.5), FineTune(epochs=1)])
def test_shared_weights_are_edited_once(tie, method):
    edited = []
    for model in (Tied(tie), Tied(by_object)):
        pipeline = Pipeline(unlearner=method)
        pipeline.run(model, forget=data(1), reference=data(), retain_data=data(), objective=CrossEntropy())
        edited.append(model)
        assert torch.equal(model.dec.weight, model.enc.weight)
    for mine, proper in zip(edited[0].parameters(), edited[1].state_dict().values(), strict=True):
        assert torch.equal(mine, proper)


@pytest.mark.parametrize("tie", ALIASES)
def test_interrupted_edit_restores_both_names(tie):
    model = Tied(tie)
    before = copy.deepcopy(model.state_dict())

    def interrupt(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pipeline(unlearner=SelectiveSynapticDampening(alpha=0.5)).run(
            model, forget=data(1), reference=data(), accept=interrupt
        )
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.dec.weight.data_ptr() == model.enc.weight.data_ptr()


def transposed(m):
    m.mid.weight.data = m.mid.weight.data.clone()
    m.dec = nn.Linear(WIDTH, WIDTH, bias=False)
    m.dec.weight.data = m.mid.weight.data.t()


def overlapping_slices(m):
    both = torch.randn(TOKENS + 1, WIDTH)
    m.enc.weight.data, m.dec.weight.data = both[:-1], both[1:]


def interleaved(m):
    both = torch.randn(TOKENS, 2 * WIDTH)
    m.enc.weight.data, m.dec.weight.data = both[:, :WIDTH], both[:, WIDTH:]


def expanded(m):
    m.mid.bias = nn.Parameter(torch.zeros(1).expand(WIDTH))


def frozen_alias(m):
    by_data(m)
    m.enc.weight.requires_grad_(False)


def buffer_of_a_weight(m):
    m.register_buffer("watch", m.mid.weight.detach()[0])


REFUSED = {
    transposed: "mid.weight and dec.weight overlap: .*one nn.Parameter",
    overlapping_slices: "enc.weight and dec.weight overlap: .*one nn.Parameter",
    expanded: "elements of mid.bias are one and the same memory",
    frozen_alias: "enc.weight must not change and is the memory of dec.weight",
    buffer_of_a_weight: "(mid.weight and watch|watch and mid.weight) overlap",
}


WORK = {
    "estimate": lambda model: DiagonalFisher().estimate(model, data(), objective=CrossEntropy()),
    "edit": lambda model: FineTune(epochs=1).unlearn(
        model, UnlearningInputs(retain_data=data(), objective=CrossEntropy())
    ),
}


@pytest.mark.parametrize("tie", REFUSED)
@pytest.mark.parametrize("work", ["estimate", "edit"])
def test_other_shared_memory_is_refused(tie, work):
    model = Tied(tie)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedModelError, match=REFUSED[tie]):
        WORK[work](model)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_disjoint_views_of_one_storage_are_two_parameters():
    model = Tied(interleaved)
    assert list(parameters(model)) == ["enc.weight", "mid.weight", "mid.bias", "dec.weight"]
    seen = DiagonalFisher().estimate(model, data(), objective=CrossEntropy())
    for name, total in oracle(model, data()).items():
        torch.testing.assert_close(seen.totals[name], total.float(), rtol=1e-4, atol=1e-9)
