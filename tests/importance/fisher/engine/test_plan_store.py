"""What was proven of a model is used again as long as its structure is the same."""

import copy
import gc
import types
import weakref

import pytest
import torch
from fisher_oracle import distance, engine_only, estimate, oracle
from torch import nn
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import CrossEntropy, DiagonalFisher, Objective, Pipeline, UnlearnKitWarning
from unlearnkit.importance import estimate_groups
from unlearnkit.importance.fisher.engine import passes


@pytest.fixture
def proofs(monkeypatch):
    """Count the passes that derive the owners of rows."""
    counted, discover = [], passes.discover

    def counting(*arguments, **options):
        counted.append(arguments)
        return discover(*arguments, **options)

    monkeypatch.setattr(passes, "discover", counting)
    return counted


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).eval()


def data(*sizes):
    torch.manual_seed(1)
    return [(torch.randn(n, 1, 6, 6), torch.randint(0, 4, (n,))) for n in sizes]


def test_one_proof_for_the_first_batch_and_none_later(proofs):
    model = network()
    estimate(model, data(8, 8, 8))
    assert len(proofs) == 1
    estimate(model, data(8))
    estimate_groups(model, data(8), objective=CrossEntropy(), key=-1)
    Pipeline(unlearner=SelectiveSynapticDampening(alpha=0.1)).run(model, forget=data(8), reference=data(8, 8))
    estimate(model, data(8))  # of the edited model
    assert len(proofs) == 1


def test_the_first_batch_of_each_size_is_checked_once(proofs):
    model = network()
    estimate(model, data(8, 5))
    estimate(model, data(5, 8))
    assert len(proofs) == 2


def test_so_few_samples_that_one_at_a_time_is_cheaper(proofs):
    model = network()
    for sizes in [(1,), (2,), (1, 1)]:
        assert distance(estimate(model, data(*sizes)), oracle(model, data(*sizes))) < 1e-5
    assert not proofs
    engine_only(model, data(2, 2))
    assert len(proofs) == 1


def another_forward(model):
    model[0].forward = types.MethodType(lambda conv, x: nn.Conv2d.forward(conv, x) * 2, model[0])


def a_hook(model):
    model[0].register_forward_hook(lambda *seen: seen[-1] * 2)


def a_flag(model):
    model[0].doubled = True


def a_layer(model):
    model[1] = nn.Tanh()


def frozen(model):
    model[0].bias.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("change", [another_forward, a_hook, a_flag, a_layer, frozen])
def test_another_structure_is_proven_anew(proofs, change):
    model = network()
    estimate(model, data(8))
    change(model)
    engine_only(model, data(8))
    assert len(proofs) == 2


class Doubled(Objective):
    """Twice the loss."""

    def losses(self, model, batch):
        return 2 * CrossEntropy().losses(model, batch)


def test_another_objective_and_a_copy_are_proven_anew(proofs):
    model = network()
    for objective in (CrossEntropy(), Doubled(), CrossEntropy(inputs=0)):
        engine_only(model, data(8), objective=objective)
    estimate(copy.deepcopy(model), data(8))
    assert len(proofs) == 4


def test_the_same_bits_with_and_without_a_proof():
    model, one = network(), DiagonalFisher()
    seen = [one.estimate(model, data(8, 5, 1, 8), objective=CrossEntropy()) for _ in range(3)]
    for later in seen[1:]:
        assert all(torch.equal(total, seen[0].totals[name]) for name, total in later.totals.items())


def test_a_model_is_not_kept_alive():
    model = network()
    estimate(model, data(8))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Switches(nn.Module):
    """Takes another way through its layers when a number is large."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.head((self.two if float(x.detach().max()) > 50 else self.one)(x).tanh())


def test_a_batch_that_goes_another_way_is_recorded_anew():
    torch.manual_seed(1)
    batches = [(torch.randn(6, 4), torch.randint(0, 5, (6,))) for _ in range(4)]
    batches[2][0][:, 1] = 100.0  # of every sample: alone each goes that way too
    engine_only(Switches(), batches)


class Mixes(nn.Module):
    """Goes another way and mixes its samples there."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x):
        if float(x.detach().max()) > 50:
            y = self.two(x)
            return y - y.mean(0) * (len(x) > 1)
        return self.one(x)


def test_and_falls_back_where_that_way_mixes_samples():
    torch.manual_seed(1)
    batches = [(torch.randn(6, 4), torch.randint(0, 5, (6,))) for _ in range(3)]
    batches[1][0][:, 1] = 100.0
    model = Mixes()
    with pytest.warns(UnlearnKitWarning, match="cannot be proven to keep its samples apart"):
        seen = estimate(model, batches)
    assert distance(seen, oracle(model, batches)) < 1e-5


class Switched(nn.Module):
    """A switch in an object of its own, as configurations of models are."""

    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(centred=False)
        self.one, self.two = nn.Linear(7, 16), nn.Linear(16, 5)

    def forward(self, x):
        h = self.one(x)
        return self.two((h - h.mean(0, keepdim=True) if self.config.centred else h).tanh())


def test_a_change_that_no_attribute_shows_is_found_in_the_first_batch():
    torch.manual_seed(0)
    model = Switched()
    batches = [(torch.randn(6, 7), torch.randint(0, 5, (6,)))]
    engine_only(model, batches)
    model.config.centred = True
    with pytest.warns(UnlearnKitWarning, match="cannot be proven to keep its samples apart"):
        found = estimate(model, batches)
    assert distance(found, oracle(model, batches)) < 1e-5
    model.config.centred = False
    assert distance(estimate(model, batches), oracle(model, batches)) < 1e-5
