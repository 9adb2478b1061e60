"""Objectives: one loss per sample, for any fields of batch and output."""

import math
from types import SimpleNamespace

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unlearnkit import ConfigurationError, CrossEntropy, MismatchError, Objective
from unlearnkit.models.objective import check_losses


def oracle(logits, label):
    """−log softmax in float64, as the definition says."""
    return math.log(sum(math.exp(z) for z in logits)) - logits[label]


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x)


def test_cross_entropy_of_two_samples():
    batch = (torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]], dtype=torch.float64), torch.tensor([1, 0]))
    losses = CrossEntropy().losses(nn.Identity(), batch)
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])


ROW = st.tuples(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.integers(0, 2))


@settings(derandomize=True, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=4))
def test_equals_the_definition_row_by_row(rows):
    x = torch.tensor([row for row, _ in rows], dtype=torch.float64)
    y = torch.tensor([label for _, label in rows])
    losses = CrossEntropy().losses(nn.Identity(), (x, y))
    assert losses.tolist() == pytest.approx([oracle(row, label) for row, label in rows], rel=1e-9, abs=1e-12)


def test_the_same_loss_from_every_layout():
    x, fine, coarse = torch.randn(3, 4), torch.tensor([9, 9, 9]), torch.tensor([0, 1, 2])
    want = CrossEntropy().losses(nn.Identity(), (x, coarse))
    layouts = [
        (CrossEntropy(), nn.Identity(), (x, fine, coarse)),
        (CrossEntropy(targets=1), nn.Identity(), (x, coarse, fine)),
        (CrossEntropy(inputs="image", targets="label"), nn.Identity(), {"image": x, "label": coarse}),
        (CrossEntropy(), Wrapped(lambda x: {"logits": x}), (x, coarse)),
        (CrossEntropy(), Wrapped(lambda x: SimpleNamespace(logits=x)), (x, coarse)),
        (CrossEntropy(output="out"), Wrapped(lambda x: {"out": x}), (x, coarse)),
        (CrossEntropy(output=1), Wrapped(lambda x: ("features", x)), (x, coarse)),
    ]
    for objective, model, batch in layouts:
        assert torch.equal(objective.losses(model, batch), want)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_every_integer_type(dtype):
    x = torch.randn(3, 4)
    labels = torch.tensor([0, 3, 2])
    assert torch.equal(
        CrossEntropy().losses(nn.Identity(), (x, labels.to(dtype))), CrossEntropy().losses(nn.Identity(), (x, labels))
    )


def test_positions_are_summed_and_the_ignored_label_is_left_out():
    logits = torch.randn(2, 3, 4, dtype=torch.float64)
    labels = torch.tensor([[0, 1, 2, -100], [-100, -100, -100, -100]])
    losses = CrossEntropy().losses(nn.Identity(), (logits, labels))
    want = sum(oracle(logits[0, :, t].tolist(), int(labels[0, t])) for t in range(3))
    assert losses.tolist() == pytest.approx([want, 0.0])


def test_describe_names_the_options_of_attrs_classes_and_the_class_of_others():
    @attrs.frozen
    class Scaled(Objective):
        c: float

        def losses(self, model, batch):
            return self.c * model(batch)

    class Plain(Objective):
        def losses(self, model, batch):
            return model(batch)

    assert Scaled(2.0).describe() != Scaled(3.0).describe()
    assert "Plain" in Plain().describe()
    assert CrossEntropy(targets="label").describe() != CrossEntropy().describe()


@pytest.mark.parametrize("label", [-1, 4, 99])
def test_a_label_out_of_range_is_refused_with_the_range(label):
    batch = (torch.randn(2, 4), torch.tensor([0, label]))
    with pytest.raises(ConfigurationError, match=r"labels from 0 to 3.*saw another.*last layer"):
        CrossEntropy().losses(nn.Identity(), batch)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (lambda x: {"out": x}, r"Wrapped to return logits.*saw dict with the keys \['out'\].*output='out'"),
        (lambda x: (x, x), "saw tuple"),
        (lambda _: None, "saw NoneType"),
    ],
)
def test_logits_that_cannot_be_found_are_refused(output, said):
    with pytest.raises(ConfigurationError, match=said):
        CrossEntropy().losses(Wrapped(output), (torch.randn(2, 4), torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (torch.tensor(0.5), r"shape \(2,\), saw a tensor of shape \(\) and torch.float32: do not average"),
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(2, 1), r"shape \(2, 1\)"),
        (torch.zeros(2, dtype=torch.long), "torch.int64"),
        (0.5, "saw float"),
        (None, "saw NoneType"),
    ],
)
def test_other_shapes_than_one_loss_per_sample_are_refused(losses, said):
    with pytest.raises(MismatchError, match=f"CrossEntropy.losses must return one loss per sample.*{said}"):
        check_losses(losses, (torch.zeros(2, 3),), objective=CrossEntropy())


def test_one_loss_per_sample_passes_unchanged():
    losses = torch.zeros(2)
    assert check_losses(losses, (torch.zeros(2, 3),), objective=CrossEntropy()) is losses
