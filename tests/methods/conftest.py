"""A model and two data sets small enough for a plain training loop."""

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unlearnkit import Importance, UnlearningInputs
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run
from unlearnkit.models.parameters import buffers, parameters


@attrs.frozen
class Tiny:
    """A trained classifier of 3 numbers into 4 classes, with its forget and retain data."""

    dtype: torch.dtype = torch.float64

    def factory(self):
        layers = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 4)
        return nn.Sequential(*layers).to(self.dtype)

    def model(self, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.factory()
            model(torch.randn(50, 3, dtype=self.dtype))  # statistics that are not the initial ones
        return model.eval()

    def data(self, seed, *sizes):
        generator = torch.Generator().manual_seed(seed)
        xs = [torch.randn(size, 3, generator=generator, dtype=self.dtype) for size in sizes]
        return [(x, torch.randint(4, (len(x),), generator=generator)) for x in xs]

    @property
    def forget(self):
        return self.data(1, 4, 3)

    @property
    def retain(self):
        return self.data(2, 5, 5, 2)

    def inputs(self, model, **changed):
        totals = {
            name: torch.rand(p.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
            for name, p in parameters(model).items()
            if p.requires_grad
        }
        usual = {
            "forget": Importance(totals=totals, count=1, role="forget"),
            "forget_data": self.forget,
            "retain_data": self.retain,
            "model_factory": self.factory,
        }
        return UnlearningInputs(**{**usual, **changed})

    def unlearned(self, method, *, seed=0, prepare=None, **changed):
        """Return the model after the method, and what was reported."""
        model = self.model(seed)
        if prepare is not None:
            prepare(model)
        return model, method.unlearn(model, self.inputs(model, **changed))

    def steps(self, model, losses, *, rate=0.05):
        """Plain gradient descent in Python: one step for each loss, a function of the model."""
        for loss in losses:
            weights = [p for p in model.parameters() if p.requires_grad]
            grads = torch.autograd.grad(loss(model), weights)
            with torch.no_grad():
                for p, grad in zip(weights, grads, strict=True):
                    p.sub_(rate * grad)
        return model


@pytest.fixture
def run_by_name(digits_toml, trained_checkpoint, tmp_path):
    """Run one method by its name from a configuration; returns the record and the weights before and after."""

    def run_it(name, *overrides, options="{}"):
        method = f"method=[{{name='{name}', options={options}}}]"
        (record,) = run(load_config(digits_toml, [method, *overrides]))
        edited = tmp_path / "out" / name / "model.safetensors"
        return record, load_file(trained_checkpoint), load_file(edited)

    return run_it


@pytest.fixture
def tiny():
    return Tiny()


def values(model):
    return {name: t.detach().clone() for name, t in {**parameters(model), **buffers(model)}.items()}


@pytest.fixture
def close():
    """Compare all weights and buffers of two models."""

    def check(one, other, **tolerance):
        theirs = values(other)
        for name, value in values(one).items():
            torch.testing.assert_close(value, theirs[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)

    return check
