"""Teachers, fresh models, class probabilities, and the divergence between them."""

import math

import pytest
import torch
from torch import nn

from unlearnkit import ConfigurationError, CrossEntropy, MismatchError, Objective, UnlearningInputs
from unlearnkit.models import Autocast
from unlearnkit.models.parameters import digest
from unlearnkit.unlearning import (
    class_labels,
    class_logits,
    copy_state,
    divergence,
    fresh_model,
    teacher_of,
    wrong_label_loss,
)
from unlearnkit.utils.rng import private_rng


def net():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 4))


class Other(Objective):
    def losses(self, model, batch):
        return model(batch[0]).sum(1)


def test_a_teacher_is_a_frozen_copy_in_eval_mode():
    model = net()
    model(torch.randn(4, 2)).sum().backward()
    teacher = teacher_of(model)
    assert digest(teacher) == digest(model)
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not {t.data_ptr() for t in model.state_dict().values()} & {
        t.data_ptr() for t in teacher.state_dict().values()
    }
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is not None for p in model.parameters())


# Fresh models


def test_a_fresh_model_depends_on_the_seed_and_on_no_trained_weight():
    one, other = net(), net()
    inputs = UnlearningInputs(model_factory=net, seed=5)
    before = torch.get_rng_state()
    digests = {digest(fresh_model(model, inputs)) for model in (one, other)}
    assert torch.equal(torch.get_rng_state(), before)
    assert len(digests) == 1
    assert digests != {digest(fresh_model(one, UnlearningInputs(model_factory=net, seed=6)))}
    assert not digests & {digest(one), digest(other)}


def test_a_fresh_model_is_not_what_training_with_the_same_seed_began_with():
    original = net()
    with private_rng(seed=7):
        start = net()
    assert digest(fresh_model(original, UnlearningInputs(model_factory=net, seed=7))) != digest(start)


def test_frozen_parameters_are_the_models():
    model = net()
    model[0].weight.requires_grad_(requires_grad=False)
    fresh = fresh_model(model, UnlearningInputs(model_factory=net))
    assert torch.equal(fresh[0].weight, model[0].weight)
    assert fresh[0].weight.data_ptr() != model[0].weight.data_ptr()
    assert [p.requires_grad for p in fresh.parameters()] == [p.requires_grad for p in model.parameters()]
    assert not torch.equal(fresh[3].weight, model[3].weight)


def test_a_factory_that_makes_no_fresh_model_is_refused():
    model = net()

    def partly():
        made = net()
        made[3].bias = model[3].bias
        return made

    cases = [
        (lambda: model, MismatchError, r"0.weight: expected a tensor of its own, saw the model's"),
        (partly, MismatchError, r"made no fresh Sequential: 3.bias: expected a tensor of its own, saw the model's"),
        (lambda: nn.Linear(2, 3), MismatchError, r"(?s)0.weight: expected, but missing.*weight: not in the model"),
        (lambda: net().double(), MismatchError, r"0.weight: expected shape \(3, 2\), torch.float32, saw .*float64"),
        (lambda: None, ConfigurationError, r"model_factory: expected a torch.nn.Module, saw NoneType"),
        (None, ConfigurationError, r"expected a model_factory in the inputs, saw None"),
    ]
    for factory, error, said in cases:
        with pytest.raises(error, match=said):
            fresh_model(model, UnlearningInputs(model_factory=factory))


def test_a_factory_with_lazy_layers_is_refused_by_their_names():
    model = nn.Linear(2, 2)
    with pytest.raises(MismatchError, match=r"weight: not initialised \(call the model once in model_factory\)"):
        fresh_model(model, UnlearningInputs(model_factory=lambda: nn.LazyLinear(2)))


def test_state_is_copied_by_name_and_frozen_parameters_stay():
    source, target = net(), net()
    source(torch.randn(8, 2))
    target[3].bias.requires_grad_(requires_grad=False)
    frozen = target[3].bias.clone()
    objects = [id(t) for t in target.state_dict(keep_vars=True).values()]
    copy_state(source, target)
    assert [id(t) for t in target.state_dict(keep_vars=True).values()] == objects
    assert torch.equal(target[3].bias, frozen)
    for name, value in source.state_dict().items():
        assert name == "3.bias" or torch.equal(target.state_dict()[name], value)


@pytest.mark.parametrize("frozen", [True, False])
def test_statistics_of_a_frozen_batch_norm_are_the_models(frozen):
    def norm():
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2))

    model = norm()
    model(torch.randn(20, 2) + 3)
    model[1].requires_grad_(requires_grad=not frozen)
    model[2].bias.requires_grad_(requires_grad=False)
    fresh = fresh_model(model, UnlearningInputs(model_factory=norm))
    assert torch.equal(fresh[1].running_mean, model[1].running_mean) == frozen
    assert torch.equal(fresh[2].running_mean, torch.zeros(2)), "its weight is trained"


# Class probabilities


def test_the_loss_of_wrong_labels_sums_over_positions():
    logits, labels = torch.randn(3, 2, 4), torch.randint(2, (3, 4))
    labels[0], labels[1, 2] = -100, -100
    found = wrong_label_loss(CrossEntropy(), nn.Identity(), (logits, labels))
    log_p = torch.log_softmax(logits.double(), dim=1)
    expected = sum(
        -log_p[i, 1 - labels[i, j], j] for i in range(3) for j in range(4) if labels[i, j] >= 0
    )  # of two classes only one is wrong
    assert float(found) == pytest.approx(float(expected) / 3)


def test_only_cross_entropy_has_class_probabilities():
    model, batch = net().eval(), (torch.ones(2, 2), torch.tensor([1, -100], dtype=torch.int32))
    assert torch.equal(class_logits(CrossEntropy(), model, batch), model(batch[0]))
    assert class_labels(CrossEntropy(), batch).tolist() == [1, -100]
    assert class_labels(CrossEntropy(), batch).dtype == torch.long
    for call in (lambda: class_logits(Other(), model, batch), lambda: class_labels(Other(), batch)):
        with pytest.raises(ConfigurationError, match=r"expected the objective CrossEntropy, .* saw .*Other"):
            call()
    with pytest.raises(ConfigurationError, match=r"expected class labels, whole numbers, saw torch.float32"):
        class_labels(CrossEntropy(), (torch.ones(2, 2), torch.ones(2, 4)))


def kl_by_hand(teacher, student, temperature):
    def softmax(row):
        weights = [math.exp(v / temperature) for v in row]
        return [w / sum(weights) for w in weights]

    pairs = zip(softmax(teacher), softmax(student), strict=True)
    return temperature**2 * sum(p * math.log(p / q) for p, q in pairs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_goes_from_the_teacher_to_the_student(temperature):
    teacher = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[0.0, 1.0, 0.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    wanted = [kl_by_hand(t, s, temperature) for t, s in zip(teacher.tolist(), student.tolist(), strict=True)]
    assert divergence(teacher, student, temperature=temperature).tolist() == pytest.approx(wanted)
    backward = [kl_by_hand(s, t, temperature) for t, s in zip(teacher.tolist(), student.tolist(), strict=True)]
    assert wanted != pytest.approx(backward)


def test_masked_classes_have_no_part_in_the_divergence():
    teacher, student = torch.tensor([[0.0, 1.0, -math.inf]]), torch.tensor([[1.0, 0.0, -math.inf]], requires_grad=True)
    found = divergence(teacher, student)
    assert torch.allclose(found, divergence(teacher[:, :2], student[:, :2]))
    (grad,) = torch.autograd.grad(found.sum(), student)
    assert bool(torch.isfinite(grad).all())


def test_the_divergence_is_zero_for_equals_and_finite_for_opposites():
    logits = torch.tensor([[1e4, -1e4], [3.0, 3.0]])
    assert divergence(logits, logits).tolist() == [0.0, 0.0]
    assert bool(torch.isfinite(divergence(logits, logits.flip(1))).all())
    padded = torch.cat([logits, torch.full((2, 1), -1e9)], dim=1)
    assert torch.allclose(divergence(padded, padded.flip(0)), divergence(logits, logits.flip(0)))


def test_further_positions_are_summed_and_shapes_must_agree():
    teacher, student = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    wanted = sum(divergence(teacher[..., i], student[..., i]) for i in range(5))
    assert torch.allclose(divergence(teacher, student), wanted, atol=1e-6)
    with pytest.raises(MismatchError, match=r"saw \(2, 3, 5\) from the teacher and \(2, 4\) from the student"):
        divergence(teacher, torch.randn(2, 4))


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_that_keeps_computed_tensors_can_be_copied(norm):
    torch.manual_seed(0)
    model, x = norm(nn.Linear(3, 2)).eval(), torch.randn(4, 3)
    expected = model(x)  # which leaves a weight that is no parameter in the module
    assert not model.weight.is_leaf
    teacher = teacher_of(model)
    assert torch.equal(teacher(x), expected)


def test_logits_of_an_objective_under_autocast():
    torch.manual_seed(0)
    model, batch = nn.Linear(3, 2), (torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    assert torch.allclose(class_logits(Autocast(), model, batch), model(batch[0]), atol=0.05)
    assert class_labels(Autocast(), batch).tolist() == [0, 1, 1, 0]


def test_a_fresh_model_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        fresh = fresh_model(nn.Linear(2, 2), UnlearningInputs(model_factory=lambda: nn.Linear(2, 2)))
    assert not fresh.weight.is_inference()
