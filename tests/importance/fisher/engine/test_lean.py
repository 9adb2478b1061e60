"""What takes the place of torch's functions inside a pass: the same numbers, in less memory."""

import pytest
import torch
from fisher_oracle import engine_only
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unlearnkit.importance.fisher.engine import lean as module
from unlearnkit.importance.fisher.engine.lean import lean


@pytest.fixture(autouse=True)
def _nothing_is_little(monkeypatch):
    monkeypatch.setattr(module, "_LITTLE", 0)


def both(function, x, *args, **options):
    """Results and gradients of torch's function and of what takes its place."""
    found = []
    for run in (function, lean(function)):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = run(leaf * 1, *args, **options)
        torch.manual_seed(1)
        g = torch.randn_like(y)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, g)))
    return found


def same(one, other):
    return all(
        a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0), "dilation": (1, 2), "ceil_mode": True},
    ],
)
def test_a_max_pool_is_torchs(options, dtype):
    torch.manual_seed(0)
    x = torch.randint(-3, 3, (2, 3, 9, 10)).to(dtype)  # with ties
    assert same(*both(F.max_pool2d, x, **options))
    assert same(*both(F.max_pool2d, x[0], **options))
    assert same(*both(F.max_pool2d, x.contiguous(memory_format=torch.channels_last), **options))


@pytest.mark.parametrize(("side", "dtype"), [(181, torch.int16), (182, torch.int32)])
def test_places_are_kept_in_as_few_bytes_as_count_them(side, dtype):
    torch.manual_seed(0)
    x = torch.zeros(1, 1, side, side)
    x[..., -1, -1] = 1  # the last place of all
    assert same(*both(F.max_pool2d, x, 3, 3, ceil_mode=True))
    assert dtype in {t.dtype for t in kept(lambda leaf: lean(F.max_pool2d)(leaf, 3, 3, ceil_mode=True), x)}


def kept(run, x):
    """What a call keeps for the way back."""
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (found.append(t), t)[1], lambda t: t):
        run(x.requires_grad_())
    return found


def test_places_that_are_asked_for_are_torchs():
    y, places = lean(F.max_pool2d)(torch.randn(1, 1, 4, 4, requires_grad=True), 2, return_indices=True)
    assert places.dtype == torch.int64
    assert y.requires_grad


SHAPES = [(5, 7), (3, 7, 4), (3, 7, 4, 5), (3, 1, 4)]


def classes(shape, ignored=-100):
    torch.manual_seed(0)
    targets = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    targets.view(-1)[1::3] = ignored
    return torch.randn(shape) * 3, targets


@pytest.mark.parametrize("at_a_time", [1, 128, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_torchs(shape, dtype, at_a_time, monkeypatch):
    monkeypatch.setattr(module, "_ON_HOST", at_a_time)
    logits, targets = classes(shape)
    assert same(*both(F.cross_entropy, logits.to(dtype), targets, reduction="none"))
    logits, targets = classes(shape, ignored=0)
    assert same(*both(F.cross_entropy, logits.to(dtype), targets, reduction="none", ignore_index=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_classes_are_not_copied_into_another_order(dtype):
    logits, targets = classes((3, 70, 40))
    rows = logits.transpose(1, 2).contiguous().to(dtype)
    for x, y in ((rows, targets), (rows[:, :-1], targets[:, 1:])):
        wide = F.cross_entropy(x.transpose(1, 2).double().requires_grad_(), y, reduction="none")
        leaf = x.detach().requires_grad_()
        ours = lean(F.cross_entropy)(leaf.transpose(1, 2), y, reduction="none")
        assert torch.allclose(ours.double(), wide, rtol=2 * torch.finfo(dtype).eps)
        torch.manual_seed(1)
        g = torch.randn_like(ours)
        (found,) = torch.autograd.grad(ours, leaf, g)
        theirs = x.detach().requires_grad_()
        torchs = F.cross_entropy(theirs.transpose(1, 2), y, reduction="none")
        (expected,) = torch.autograd.grad(torchs, theirs, g)
        assert found.is_contiguous()
        assert float((found - expected).abs().max()) <= 4 * torch.finfo(dtype).eps * float(expected.abs().max())


def test_what_is_more_than_the_losses_of_labels_is_torchs():
    logits, targets = classes((4, 5))
    probabilities = torch.rand(4, 5).softmax(1)
    for options in (
        {"reduction": "mean"},
        {"reduction": "sum"},
        {"reduction": "none", "weight": torch.rand(5)},
        {"reduction": "none", "label_smoothing": 0.1},
    ):
        assert same(*both(F.cross_entropy, logits, targets, **options))
    assert same(*both(F.cross_entropy, logits, probabilities, reduction="none"))
    assert same(*both(F.cross_entropy, logits[0], torch.tensor(2), reduction="none"))
    with torch.autocast("cpu", torch.bfloat16):
        assert same(*both(F.cross_entropy, logits.bfloat16(), targets, reduction="none"))


def test_a_label_that_is_no_class_is_the_error_of_torch():
    with pytest.raises(IndexError, match="out of bounds"):
        lean(F.cross_entropy)(torch.randn(2, 3, requires_grad=True), torch.tensor([0, 3]), reduction="none")


def test_transforms_of_torch_see_torchs_functions():
    def pooled(x):
        return lean(F.max_pool2d)(x[None], 2).square().sum()

    x = torch.randn(3, 2, 4, 4)
    found = torch.func.vmap(torch.func.grad(pooled))(x)
    assert torch.equal(found.ne(0).sum((1, 2, 3)), torch.full((3,), 8))


def test_a_gradient_is_not_differentiated_in_silence():
    logits, targets = classes((4, 5))
    leaf = logits.requires_grad_()
    loss = lean(F.cross_entropy)(leaf, targets, reduction="none").square().sum()
    (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_what_is_little_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(module, "_LITTLE", 4 * 20)
    for rows, ours in ((4, False), (5, True)):
        logits, targets = classes((rows, 5))
        losses = lean(F.cross_entropy)(logits.requires_grad_(), targets, reduction="none")
        assert (type(losses.grad_fn).__name__ != "NllLossBackward0") is ours


class Captions(nn.Module):
    """Logits of shape (n, classes, positions) from a map that is pooled twice, once in a segment that is recomputed."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 2), nn.Linear(4, 6)

    def forward(self, x):
        x = checkpoint(lambda x: F.max_pool2d(self.one(x).tanh(), 2), x, use_reentrant=False)
        x = nn.functional.max_pool2d(self.two(x), 2, padding=1)
        return self.head(x.flatten(2).transpose(1, 2)).transpose(1, 2)


def test_the_engine_is_right_with_them():
    torch.manual_seed(0)
    model = Captions()
    x = torch.randn(7, 2, 10, 10, requires_grad=True)
    targets = torch.randint(0, 6, (7, model(x).shape[2]))
    targets[::2, 1] = -100
    engine_only(model, [(x.detach(), targets)])


def test_other_functions_are_themselves():
    assert lean(F.relu) is F.relu
    assert lean(nn.functional.linear) is F.linear
