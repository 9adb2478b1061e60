"""Objectives: one loss per sample, for any fields of batch and output."""

import math
from types import SimpleNamespace

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from unlearnkit_methods.prune import Prune

from unlearnkit import (
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    EvaluationInputs,
    MismatchError,
    Objective,
    Pipeline,
    UnlearningInputs,
    UnlearnKitWarning,
)
from unlearnkit.models import BinaryCrossEntropy, SquaredError, train
from unlearnkit.models.objective import Autocast, check_losses, score_batch


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


def test_outputs_of_a_softmax_are_said_to_be_no_logits():
    batch = (torch.tensor([[0.5, 2.0], [1.0, -1.0]]), torch.tensor([1, 0]))
    with pytest.warns(UnlearnKitWarning, match="expected logits, saw outputs from 0 to 1 that add up to 1"):
        score_batch(nn.Softmax(1), batch, objective=CrossEntropy())
    for model in (nn.Identity(), nn.LogSoftmax(1), nn.Sigmoid()):
        score_batch(model, batch, objective=CrossEntropy())  # no warning, which would be an error here
    score_batch(nn.Identity(), (torch.eye(2), torch.tensor([1, 0])), objective=CrossEntropy())


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
        (CrossEntropy(targets=2), nn.Identity(), (x, fine, coarse)),
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


def layer(out, dtype=torch.float32):
    return nn.Linear(4, out, dtype=dtype)


X, Y = torch.randn(6, 4), torch.arange(6) % 3


@pytest.mark.parametrize(
    ("model", "batch", "said"),
    [
        (
            layer(1),
            (X, torch.randn(6, 1)),
            r"at least two classes, .* saw \(6, 1\): for regression say .*SquaredError\(\)",
        ),
        (layer(1), (X, Y * 0), r"at least two classes, .* saw \(6, 1\): .*objective=BinaryCrossEntropy\(\)"),
        (layer(3), (X, torch.randn(6, 3)), r"class labels, .*: for regression say objective=SquaredError\(\)"),
        (layer(3), (X, torch.randn(6, 3).softmax(1)), r"class labels, .*: for class prob.*CrossEntropy\(probabilities"),
        (layer(3), (X, (torch.rand(6, 3) > 0.5).long()), r"labels of shape \(6,\), .*objective=BinaryCrossEntropy\(\)"),
        (nn.Conv1d(4, 3, 1), (X[..., None], Y[:, None] + 253), "labels from 0 to 2, .*pixels of 255 .* make them -100"),
        (nn.Flatten(0), (torch.randn(6), Y), r"at least two classes, .* saw \(6,\)"),
        (
            layer(3),
            (X, torch.rand(6, 3).round()),
            r"class labels, .* saw targets of torch.float32 .*probabilities=True",
        ),
        (layer(3), (X, torch.randn(6)), r"class labels, .* saw targets of torch.float32 and shape \(6,\)"),
        (layer(3), (X, Y[:, None]), r"labels of shape \(6,\), saw .* \(6, 1\) for logits \(6, 3\): squeeze them"),
        (
            layer(3),
            (X, Y[:, None].expand(6, 2)),
            r"labels of shape \(6,\), saw .* for logits \(6, 3\): for several labels",
        ),
        (
            layer(3),
            (X, torch.rand(6, 3) > 0.5),
            r"labels of shape \(6,\), saw targets of torch.bool .*: for labels that are 0 or 1 say",
        ),
        (
            layer(3),
            (X, Y.float()),
            r"class labels, .* saw targets of torch.float32 .*: convert them, y.long\(\); for regression say",
        ),
        (nn.Embedding(3, 3), (Y,), r"a batch of two fields, inputs and labels, saw 1"),
        (nn.Embedding(3, 3), (Y.float(), Y), r"whole numbers, as an embedding takes, saw torch.float32: .* x.long\(\)"),
        (layer(3), (X.numpy(), Y), r"inputs that are tensors, saw ndarray"),
        (layer(3), (X, Y, torch.arange(6)), r"a batch of two fields, .* saw 3: .*CrossEntropy\(targets=1\)"),
        (layer(3), (X.double(), Y), r"inputs of torch.float32, .* Linear are, saw torch.float64: convert"),
        (layer(3, torch.float64), (X, Y), r"inputs of torch.float64, .* Linear are, saw torch.float32: convert"),
        (nn.Conv1d(4, 3, 1), (X.double()[..., None], Y[:, None]), r"inputs of torch.float32, .* Conv1d are, saw"),
        (layer(3), ((X * 9).byte(), Y), r"inputs of torch.float32, .* Linear are, saw torch.uint8: convert"),
    ],
)
def test_cross_entropy_refuses_what_it_cannot_mean_with_what_to_do(model, batch, said, record_property):
    record_property("tried", ("misused objectives", 1))
    with pytest.raises((ConfigurationError, MismatchError), match=said):
        CrossEntropy().losses(model, batch)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("image", "label"), r"CrossEntropy\(inputs='image', targets='label'\)"),
        (("labels", "pixel_values"), r"CrossEntropy\(inputs='pixel_values', targets='labels'\)"),
        (
            ("input_ids", "attention_mask", "labels"),
            r"CrossEntropy\(inputs=\('input_ids', 'attention_mask'\), targets='labels'\)",
        ),
        (("input_ids", "attention_mask"), r"CausalLanguageModel\(\)"),
        (("input_ids", "attention_mask", "targets"), r"CausalLanguageModel\(\)"),
        (("a", "b"), r"CrossEntropy\(inputs='image', targets='label'\)"),
    ],
)
def test_the_error_for_a_dict_names_the_objective_for_its_keys(keys, said):
    batch = {key: torch.zeros(2, 3) if key not in {"label", "labels"} else torch.zeros(2).long() for key in keys}
    with pytest.raises(ConfigurationError, match=f"with the keys .*for example {said}$"):
        CrossEntropy().losses(nn.Identity(), batch)


class ByName(nn.Module):
    """Takes its inputs by name, as models of Hugging Face do."""

    def forward(self, input_ids, attention_mask):
        return {"logits": input_ids * attention_mask}


def test_several_inputs_are_passed_by_name():
    batch = {"input_ids": torch.randn(2, 3), "attention_mask": torch.ones(2, 3), "labels": torch.tensor([0, 2])}
    objective = CrossEntropy(inputs=["input_ids", "attention_mask"], targets="labels")
    want = nn.functional.cross_entropy(batch["input_ids"], batch["labels"], reduction="none")
    assert torch.equal(objective.losses(ByName(), batch), want)
    assert objective == CrossEntropy(inputs=("input_ids", "attention_mask"), targets="labels")
    assert "inputs=('input_ids', 'attention_mask')" in objective.describe()


@pytest.mark.parametrize("targets", [Y.float(), Y.float()[:, None], Y[:, None]])
def test_squared_error_is_that_of_a_gaussian_and_never_broadcasts(targets):
    model = layer(1)
    gaussian = torch.distributions.Normal(model(X)[:, 0], 1.0)
    want = -gaussian.log_prob(Y.float()) + gaussian.log_prob(gaussian.mean)
    assert torch.allclose(SquaredError().losses(model, (X, targets)), want, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.long, torch.float32, torch.bool])
def test_binary_cross_entropy_is_that_of_bernoulli_variables(kind):
    model, labels = layer(3), torch.arange(18).reshape(6, 3) % 2
    want = -torch.distributions.Bernoulli(logits=model(X)).log_prob(labels.float()).sum(1)
    assert torch.allclose(BinaryCrossEntropy().losses(model, (X, labels.to(kind))), want)


def test_binary_cross_entropy_takes_one_logit_per_pixel():
    images, masks = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 4, 4))
    want = nn.functional.binary_cross_entropy_with_logits(images[:, 0], masks.float(), reduction="none").sum((1, 2))
    assert torch.allclose(BinaryCrossEntropy().losses(nn.Identity(), (images, masks)), want)


@pytest.mark.parametrize("objective", [SquaredError(), BinaryCrossEntropy()])
def test_targets_of_another_shape_than_the_outputs_are_refused(objective):
    for batch in ((X, Y.float()), (X, Y[:, None].expand(6, 2)), (X, torch.zeros(3, 3))):
        with pytest.raises(ConfigurationError, match=r"targets of the outputs' shape \(6, 3\), saw"):
            objective.losses(layer(3), batch)
    name = type(objective).__name__
    with pytest.raises(ConfigurationError, match=rf"{name}\(targets=1\)"):
        objective.losses(layer(3), (X, X[:, :3], Y))


def test_class_probabilities_are_taken_when_asked_for_and_are_one_objective_with_labels():
    one_hot = nn.functional.one_hot(Y, 3).float()
    objective, model = CrossEntropy(probabilities=True), layer(3)
    assert torch.allclose(objective.losses(model, (X, one_hot)), CrossEntropy().losses(model, (X, Y)))
    assert objective.describe() == CrossEntropy().describe()


def test_an_error_of_the_model_itself_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        CrossEntropy().losses(nn.Linear(5, 3, dtype=torch.float64), (X.double(), Y))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        CrossEntropy().losses(nn.Linear(5, 3), (X, Y))


@pytest.mark.parametrize(
    "use",
    [
        lambda wrong: DiagonalFisher().estimate(layer(3), [(X, Y)], objective=wrong),
        lambda wrong: UnlearningInputs(objective=wrong),
        lambda wrong: EvaluationInputs(model=layer(3), splits={}, objective=wrong),
        lambda wrong: train(layer(3), [(X, Y)], objective=wrong),
        lambda wrong: Pipeline(unlearner=Prune()).run(layer(3), forget=[(X, Y)], objective=wrong),
        lambda wrong: Autocast(objective=wrong),
    ],
)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (nn.CrossEntropyLoss(), r"saw CrossEntropyLoss\(\): use CrossEntropy\(\), or write"),
        (CrossEntropy, "pass an object, not its class"),
        (nn.functional.cross_entropy, r"saw <function cross_entropy .*: use CrossEntropy\(\), or write an"),
    ],
)
def test_what_is_no_objective_is_refused_wherever_one_is_passed(use, wrong, said, record_property):
    record_property("tried", ("misused objectives", 1))
    with pytest.raises(ConfigurationError, match=said):
        use(wrong)


def test_binary_targets_are_from_0_to_1_and_minus_100_is_left_out():
    torch.manual_seed(0)
    x, objective = torch.randn(2, 3), BinaryCrossEntropy()
    y = torch.tensor([[0, 1, -100], [-100, -100, -100]])
    kept = [0, 1]
    expected = nn.functional.binary_cross_entropy_with_logits(x[0, kept], y[0, kept].float(), reduction="sum")
    assert objective.losses(nn.Identity(), (x, y)).tolist() == pytest.approx([float(expected), 0.0])
    for wrong in (-1, 255, 1.5):
        with pytest.raises(ConfigurationError, match="expected targets from 0 to 1, and -100 for those to"):
            objective.losses(nn.Identity(), (x, torch.full((2, 3), wrong)))


def test_objectives_are_told_apart_by_the_tensors_and_modules_among_their_options():
    @attrs.frozen
    class Wrapped(Objective):
        option: object

        def losses(self, model, batch):
            raise NotImplementedError

    values = [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.2),
        nn.CrossEntropyLoss(weight=torch.tensor([100.0, 1.0])),
        torch.ones(2000),
        torch.cat([torch.ones(1000), torch.zeros(1), torch.ones(999)]),
    ]
    assert len({Wrapped(value).describe() for value in values}) == len(values)
    assert Wrapped(torch.ones(3)).describe() == Wrapped(torch.ones(3)).describe()
