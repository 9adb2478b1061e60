"""The snapshot: restores every bit of a model."""

import pytest
import torch
from torch import nn

from unlearnkit.models.parameters import buffers, digest, parameters
from unlearnkit.models.snapshot import ModelSnapshot


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.frozen.requires_grad_(requires_grad=False)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x):
        return self.head(self.drop(self.norm(self.frozen(self.embed(x)))))


def fresh():
    torch.manual_seed(0)
    model = Net()
    model(torch.tensor([0, 1, 2])).sum().backward()
    model.drop.eval()
    return model


def state(model):
    """Everything that must be restored, as plain values and identities."""
    return {
        "digest": digest(model),
        "parameters": [(n, id(p), p.data_ptr(), p.requires_grad, p.dtype) for n, p in parameters(model).items()],
        "buffers": [(n, id(b)) for n, b in buffers(model).items()],
        "grads": [(id(p.grad), None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
        "modes": [(n, m.training) for n, m in model.named_modules()],
        "modules": [(n, id(m)) for n, m in model.named_modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
    }


def grow(model):
    model.extra = nn.Linear(2, 2)


def shrink(model):
    del model.norm


def untie(model):
    model.head.weight = nn.Parameter(torch.zeros(5, 4))


def replace_module(model):
    model.frozen = nn.Linear(4, 4)


def add_parameter(model):
    model.register_parameter("extra", nn.Parameter(torch.zeros(1)))


def drop_parameter(model):
    model.frozen.bias = None


def add_buffer(model):
    model.register_buffer("extra", torch.zeros(1))


def edit(model):
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()


def edit_buffers(model):
    model.norm.running_mean.add_(1)
    model.steps += 1


def replace_buffer(model):
    model.norm.running_mean = model.norm.running_mean + 1


def replace_buffer_by_its_equal(model):
    model.norm.running_mean = model.norm.running_mean.clone()


def half(model):
    model.half()


def double(model):
    model.double()


def reshape(model):
    model.embed.weight.data = torch.zeros(2, 2)


def transpose(model):
    model.frozen.weight.data.t_()
    model.frozen.weight.data = model.frozen.weight.data.t().contiguous()


def train_mode(model):
    model.train()
    model.norm.eval()


def thaw(model):
    model.requires_grad_(requires_grad=True)
    model.embed.weight.requires_grad_(requires_grad=False)


def gradients(model):
    for p in model.parameters():
        p.grad = torch.ones_like(p)


def hook(model):
    model.head.register_forward_hook(lambda *_: None)
    model.norm.register_forward_pre_hook(lambda *_: None)


def everything(model):
    for vandal in (edit, edit_buffers, half, thaw, gradients, hook, grow, untie, shrink):
        vandal(model)


VANDALS = [
    grow, shrink, untie, replace_module, add_parameter, drop_parameter, add_buffer, edit, edit_buffers, replace_buffer,
    replace_buffer_by_its_equal, half, double, reshape, transpose, train_mode, thaw, gradients, hook, everything,
]  # fmt: skip
STRUCTURAL = [grow, shrink, untie, replace_module, add_parameter, drop_parameter, add_buffer, half, double, reshape]
SURROUNDINGS = [edit_buffers, replace_buffer_by_its_equal, train_mode, thaw, gradients, hook]


@pytest.mark.parametrize("vandal", VANDALS, ids=lambda f: f.__name__)
def test_restore_puts_back_every_bit_and_object(vandal):
    model = fresh()
    want = state(model)
    guard = ModelSnapshot(model)
    assert state(model) == want, "taking a snapshot changes nothing"
    guard.hide_gradients()
    assert all(p.grad is None for p in model.parameters())
    vandal(model)
    guard.restore()
    assert state(model) == want
    assert guard.structure_changes() == guard.changed_parameters() == guard.changed_buffers() == []


@pytest.mark.parametrize("vandal", SURROUNDINGS, ids=lambda f: f.__name__)
def test_restoring_only_the_surroundings_keeps_edited_weights(vandal):
    model = fresh()
    want = state(model)
    guard = ModelSnapshot(model)
    vandal(model)
    edit(model)
    guard.restore_surroundings()
    seen = state(model)
    assert {k: v for k, v in seen.items() if k != "digest"} == {k: v for k, v in want.items() if k != "digest"}
    assert guard.changed_parameters() == ["embed.weight", "norm.weight", "frozen.weight", "frozen.bias"]


@pytest.mark.parametrize("vandal", STRUCTURAL, ids=lambda f: f.__name__)
def test_structure_changes_are_detected(vandal):
    model = fresh()
    guard = ModelSnapshot(model)
    vandal(model)
    assert guard.structure_changes()


def test_changes_are_named():
    model = fresh()
    guard = ModelSnapshot(model)
    assert guard.structure_changes() == guard.changed_parameters() == guard.changed_buffers() == []
    with torch.no_grad():
        model.frozen.bias[0] += 1
        model.norm.running_var[0] = -0.0
    model.frozen.weight.data = model.frozen.weight.data.double()
    del model.head.weight
    assert guard.changed_parameters() == ["frozen.weight", "frozen.bias"]
    assert guard.changed_buffers() == ["norm.running_var"]
    said = "\n".join(guard.structure_changes())
    assert "head gained, lost or replaced a parameter" in said
    assert "frozen.weight: expected shape (4, 4), torch.float32 on cpu, saw shape (4, 4), torch.float64 on cpu" in said


def test_signed_zeros_and_new_nans_are_changes_and_equal_nans_are_not():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, float("nan")]]))
    guard = ModelSnapshot(model)
    assert guard.changed_parameters() == []
    with torch.no_grad():
        model.weight[0, 0] = -0.0
    assert guard.changed_parameters() == ["weight"]
    guard.restore()
    assert not torch.signbit(model.weight[0, 0])
    assert torch.isnan(model.weight[0, 1])


def test_requires_grad_is_remembered():
    model = fresh()
    guard = ModelSnapshot(model)
    thaw(model)
    assert list(guard.trainable()) == ["embed.weight", "norm.weight", "norm.bias"]


def test_before_is_a_copy():
    model = nn.Linear(2, 1)
    kept = model.weight.detach().clone()
    guard = ModelSnapshot(model)
    edit(model)
    assert torch.equal(guard.before("weight"), kept)


def test_nested_snapshots():
    model = fresh()
    want = [p.grad for p in model.parameters()]
    outer = ModelSnapshot(model)
    outer.hide_gradients()
    inner = ModelSnapshot(model)
    inner.hide_gradients()
    edit(model)
    inner.restore()
    outer.restore()
    assert all(p.grad is g for p, g in zip(model.parameters(), want, strict=True))
