"""Projection of class directions: no layer answers any more to what only the forgotten class has in its input."""

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import Conv1d, Conv2d, Conv3d

from unlearnkit import MismatchError, Need, Unlearner, UnlearnerTraits, UnlearningInputs, hookimpl, option
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.unlearning import class_labels, teacher_of

LAYERS = (nn.Linear, Conv1d, Conv2d, Conv3d)
NOTHING = 1e-6  # a residual of this size, relative to the prototype, is rounding


@final
@attrs.frozen(kw_only=True)
class ClassProjection(Unlearner):
    """W ← W − s_l·W·Q·Qᵀ in every linear and convolutional layer l, Q an orthonormal basis of the forget directions.

    A prototype is the mean input of the layer over the samples of one class, for convolutions over positions too. A
    forget direction is the residual of a prototype of the forget set after its projection on the span of the prototypes
    of the retain set. s_l = κ·ρ_l/max ρ, at most 1, where ρ_l is the norm of the residuals over that of the prototypes:
    the edit is strong where the forget set stands apart, which is in deep layers, and weak in early ones. Biases, norm
    layers, grouped convolutions, parametrized and frozen weights are left alone.

    One pass over both sets in eval mode, without gradients. The labels have the shape (batch,), and dimension 0 of a
    layer's input is that of the batch or a multiple of it.

    Good for: whole classes in one pass, without training.

    Source: Hatami, Aalishah and Monosov 2026 (Class Unlearning via Depth-Aware Removal of Forget-Specific Directions),
    DAMP: prototypes, residuals and the projection. We know its abstract only; its scale by depth comes from the
    separability of probes, and ρ_l in its place is this project's.

    Examples:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> one, other = ([(torch.tensor([[*x]]), torch.tensor([y]))] for x, y in (((3.0, 4.0), 0), ((5.0, 0.0), 1)))
        >>> _ = ClassProjection().unlearn(model, UnlearningInputs(forget_data=one, retain_data=other))
        >>> model.weight.tolist()  # of (3, 4) the part (0, 4) is not in the span of (5, 0)
        [[1.0, 0.0], [1.0, 0.0]]
    """

    name: ClassVar[str] = "class-projection"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(deterministic=True)

    strength: float = option(
        1.0, symbol="κ", at_least=0.0, doc="scale of the edit in the layer of the largest ρ", search=(0.1, 3.0)
    )

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        kept, gone = (prototypes(model, data, inputs) for data in (inputs.retain_data, inputs.forget_data))
        bases = {name: directions(gone[name], kept[name]) for name in gone if name in kept}
        largest = max((rho for _, rho in bases.values()), default=0.0)
        for name, (basis, rho) in bases.items():
            if rho > NOTHING:
                weight = model.get_submodule(name).get_parameter("weight")
                remove(weight, basis, min(1.0, self.strength * rho / largest))


def prototypes(model: nn.Module, batches: Iterable[Any] | None, inputs: UnlearningInputs) -> dict[str, Tensor]:
    """Return the mean input of each layer for every class: layer name to a float64 tensor (classes, features)."""
    copy = teacher_of(model)
    sums: dict[str, dict[int, Tensor]] = defaultdict(dict)
    counts: dict[int, int] = defaultdict(int)
    seen: dict[str, Tensor] = {}

    def record(name: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        x = given[0].detach().double()
        seen[name] = x if isinstance(layer, nn.Linear) else x.movedim(1, -1)

    for name, layer in copy.named_modules():
        if isinstance(layer, LAYERS) and getattr(layer, "groups", 1) == 1:
            weight = dict(model.get_submodule(name).named_parameters(recurse=False)).get("weight")
            if weight is not None and weight.requires_grad:
                layer.register_forward_pre_hook(partial(record, name))
    assert batches is not None, "both sets are among the needs"
    for batch in inputs.progress(batches, "prototypes", None):
        labels = class_labels(inputs.objective, batch)
        if labels.dim() != 1:
            raise MismatchError(f"class-projection: expected one label for each sample, saw {tuple(labels.shape)}")
        seen.clear()
        loss_and_accuracy(copy, [batch], objective=inputs.objective)
        for label in sorted(set(labels.tolist())):
            counts[label] += int((labels == label).sum())
            for name, x in seen.items():
                rows = x.reshape(len(labels), -1, x.shape[-1]).mean(1)[(labels == label).to(x.device)].sum(0)
                sums[name][label] = sums[name][label] + rows if label in sums[name] else rows
    return {name: torch.stack([total / counts[c] for c, total in found.items()]) for name, found in sums.items()}


def directions(forget: Tensor, retain: Tensor) -> tuple[Tensor, float]:
    """Return an orthonormal basis (features, directions) of the residuals, and ρ."""
    span = basis_of(retain)
    residuals = forget - forget @ span @ span.T
    return basis_of(residuals), float(residuals.norm() / forget.norm().clamp(min=torch.finfo(forget.dtype).tiny))


def basis_of(rows: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of some rows, as columns."""
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    found: Tensor = vectors[values > NOTHING * values.max()]
    return found.T


def remove(weight: nn.Parameter, basis: Tensor, scale: float) -> None:
    """Subtract from the input dimension (1) of a weight its projection on the basis, times a scale."""
    rows = weight.detach().double().movedim(1, -1)
    with torch.no_grad():
        weight.copy_((rows - scale * (rows @ basis @ basis.T)).movedim(-1, 1))


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [ClassProjection]
