"""Teachers, fresh models, class logits and the divergence between two models, for methods that distil."""

import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unlearnkit.models.objective import IGNORED, Classification, Objective, without_autocast
from unlearnkit.models.parameters import (
    buffers,
    copy_of,
    device_of,
    is_frozen,
    parameters,
    parameters_and_buffers,
    trainable,
)
from unlearnkit.unlearning.unlearner import UnlearningInputs
from unlearnkit.utils.errors import ConfigurationError, MismatchError, raise_all
from unlearnkit.utils.rng import private_rng


def teacher_of(model: nn.Module) -> nn.Module:
    """Copy a model to learn from: in eval mode, frozen, and sharing no tensor with the original.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> teacher = teacher_of(model)
        >>> teacher.training, teacher.weight.requires_grad, teacher.weight.data_ptr() == model.weight.data_ptr()
        (False, False, False)
    """
    teacher = copy_of(model)
    for p in teacher.parameters():
        p.grad = None
    return teacher.requires_grad_(requires_grad=False).eval()


def fresh_model(model: nn.Module, inputs: UnlearningInputs) -> nn.Module:
    """Make an untrained model of the same kind, on the same device, with ``inputs.model_factory``.

    The weights are drawn with a seed that is derived from ``inputs.seed``: with that number itself they could be the
    initial weights of the model's own training.

    Parameters that are frozen in the model are frozen in the fresh one too, and have the model's values, as have the
    buffers of modules whose own parameters are all frozen (the statistics of a frozen BatchNorm); nothing else of the
    model has any influence on it. A factory whose model has other parameters or buffers, or shares some, is a
    `MismatchError`; one that makes no module, or none at all, a `ConfigurationError`.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> fresh = fresh_model(model, UnlearningInputs(model_factory=lambda: nn.Linear(2, 2)))
        >>> torch.equal(fresh.weight, model.weight)
        False
    """
    if inputs.model_factory is None:
        raise ConfigurationError("expected a model_factory in the inputs, saw None: it makes an untrained model")
    if isinstance(inputs.model_factory, nn.Module):
        kind = type(inputs.model_factory).__name__
        raise ConfigurationError(
            f"model_factory: expected a function that makes an untrained model, saw a {kind}: pass lambda: MyNet()"
        )
    device = device_of(model)
    derived = hashlib.blake2b(f"fresh model {inputs.seed}".encode(), digest_size=4).digest()
    with private_rng(device, seed=int.from_bytes(derived, "big")), torch.inference_mode(mode=False):
        fresh = inputs.model_factory()
    if not isinstance(fresh, nn.Module):
        raise ConfigurationError(f"model_factory: expected a torch.nn.Module, saw {type(fresh).__name__}")
    fresh = fresh.to(device)
    wanted, seen = parameters_and_buffers(model), parameters_and_buffers(fresh)
    problems = [f"{name}: expected, but missing" for name in wanted if name not in seen]
    problems += [f"{name}: not in the model" for name in seen if name not in wanted]
    lazy = {name for name, t in seen.items() if is_lazy(t)}
    problems += [f"{name}: not initialised (call the model once in model_factory)" for name in seen if name in lazy]
    for name in (name for name in wanted if name in seen and name not in lazy):
        kinds = [f"shape {tuple(t.shape)}, {t.dtype}" for t in (wanted[name], seen[name])]
        if kinds[0] != kinds[1]:
            problems.append(f"{name}: expected {kinds[0]}, saw {kinds[1]}")
        elif wanted[name].numel() and wanted[name].data_ptr() == seen[name].data_ptr():
            problems.append(f"{name}: expected a tensor of its own, saw the model's")
    raise_all(problems, where=f"model_factory made no fresh {type(model).__name__}")
    with torch.no_grad():
        for name, p in parameters(fresh).items():
            p.requires_grad_(wanted[name].requires_grad)
            if not p.requires_grad:
                p.copy_(wanted[name])
        kept = {id(b) for module in fresh.modules() if is_frozen(module) for b in module.buffers(recurse=False)}
        for name, buffer in buffers(fresh).items():
            if id(buffer) in kept:
                buffer.copy_(wanted[name])
    return fresh


def copy_state(source: nn.Module, target: nn.Module) -> None:
    """Copy trainable weights and buffers from one model into another of the same kind, by name, in place.

    Examples:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> copy_state(one, other)
        >>> torch.equal(one.weight, other.weight)
        True
    """
    values = parameters_and_buffers(source)
    with torch.no_grad():
        for name, tensor in {**trainable(target), **buffers(target)}.items():
            tensor.copy_(values[name])


def class_logits(objective: Objective, model: nn.Module, batch: Any) -> Tensor:
    """Return a classifier's logits of a batch on its device, shape (batch, classes, …), for class probabilities.

    Those of a language model have the shape (batch, vocabulary, tokens) and are 0 where nothing is predicted. A
    `ConfigurationError` for an objective that is no `Classification`: it has no class probabilities.
    """
    _classification(objective)
    logits: Tensor = objective.logits(model, batch)  # type: ignore[attr-defined]  # `Autocast` has one too
    return logits


def class_labels(objective: Objective, batch: Any) -> Tensor:
    """Return the labels of a batch, shape (batch, …), int64, for methods that relabel; −100 is no label.

    A `ConfigurationError` for an objective that is no `Classification`, and for class probabilities instead of labels.
    """
    labels = _classification(objective).labels(batch)
    if labels.is_floating_point():
        raise ConfigurationError(f"expected class labels, whole numbers, saw {labels.dtype} of {tuple(labels.shape)}")
    return labels.long()


def wrong_label_loss(objective: Objective, model: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy of a batch with `other_labels` in place of its own, a scalar tensor in nats.

    That of a sample is a sum over its positions (pixels, tokens), as in the objective's losses.
    """
    logits, labels = class_logits(objective, model, batch), class_labels(objective, batch)
    wrong = other_labels(labels, classes=logits.shape[1])
    losses = nn.functional.cross_entropy(logits, wrong, ignore_index=IGNORED, reduction="none")
    return losses.reshape(len(losses), -1).sum(1).mean()


def other_labels(labels: Tensor, *, classes: int) -> Tensor:
    """Draw another label for each one, uniformly from the other classes; −100 (no label) stays.

    Examples:
        >>> other_labels(torch.tensor([0, 1, -100]), classes=2)
        tensor([   1,    0, -100])
    """
    if classes < 2:
        raise ConfigurationError(f"expected at least 2 classes, saw {classes}: wrong labels are drawn from the others")
    moved = (labels + torch.randint_like(labels, 1, classes)) % classes
    return torch.where(labels == IGNORED, labels, moved)


def divergence(teacher: Tensor, student: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return T²·KL(p_T ‖ q_T) of every sample: from the teacher's to the student's class probabilities.

    p_T = softmax(teacher / T), q_T = softmax(student / T), KL(p ‖ q) = Σ_c p_c·(ln p_c − ln q_c). Logits have one shape
    (batch, classes, …), others are a `MismatchError`; the result has the shape (batch,), in nats, and is summed over
    further positions and over classes. The factor T² keeps the size of the gradients when T > 0 changes. Source: Hinton
    et al. 2015 (Distilling the Knowledge in a Neural Network).

    Examples:
        >>> divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor([0.1201])
    """
    if teacher.shape != student.shape:
        shapes = f"{tuple(teacher.shape)} from the teacher and {tuple(student.shape)} from the student"
        raise MismatchError(f"expected logits of one shape, saw {shapes}")
    log_p, log_q = (torch.log_softmax(logits / temperature, dim=1) for logits in (teacher, student))
    ratios = (log_p - log_q).masked_fill(log_p == -math.inf, 0)  # 0·ln 0 is 0, of classes that are masked
    return temperature**2 * (log_p.exp() * ratios).flatten(1).sum(1)


def distillation_loss(
    teacher: nn.Module, student: nn.Module, batch: Any, *, objective: Objective, temperature: float = 1.0
) -> Tensor:
    """Return the mean `divergence` of a batch on the models' device, a scalar tensor in nats.

    The teacher gets no gradient (see `teacher_of`), and the objective must be a `Classification`.
    """
    with torch.no_grad():
        target = class_logits(objective, teacher, batch)
    return divergence(target, class_logits(objective, student, batch), temperature=temperature).mean()


def _classification(objective: Objective) -> Classification:
    found = without_autocast(objective)
    if not isinstance(found, Classification):
        raise ConfigurationError(
            f"expected the objective CrossEntropy, or one of a language model, saw {objective.describe()}, without "
            "the class probabilities that this method or metric reads"
        )
    return found
