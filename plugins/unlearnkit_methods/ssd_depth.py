"""Dampening by depth: from the last layer to the first, weaker and weaker, until the forget set is forgotten."""

from collections.abc import Iterable
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    ConfigurationError,
    Need,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    hookimpl,
    option,
)
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.importance import ratio_threshold
from unlearnkit.models import trainable


@final
@attrs.frozen(kw_only=True)
class DepthDampening(Unlearner):
    """θ' = θ·min(S_l·λ·F_r/F_f, 1) where F_f > S_l·α·F_r, in layer l = L, L − 1, … until the forget accuracy is a.

    S_l grows evenly from 1 in the last layer L to b in the first, so that early layers, which all classes share, lose
    fewer weights and less of each. α selects the given fraction of all weights where S_l = 1. After each layer the
    accuracy on the forget set is measured: at a or below, the earlier layers stay as they are.

    A layer is a module that has trainable weights of its own; layers are ordered by definition.

    Good for: the same as `ssd`, changing as few layers as it takes, the last ones first.

    Source: Cho et al. 2025 (FiCABU: A Fisher-Based, Context-Adaptive Machine Unlearning Processor for Edge AI), which
    begins with the last layers, stops at the target and scales the dampening by depth; we know its abstract only, and
    the even profile and the fraction are this project's.

    Examples:
        >>> from unlearnkit import Importance
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False))
        >>> for p, values in zip(model.parameters(), ([[1.0]], [[1.0], [0.5]])):
        ...     p.data = torch.tensor(values)
        >>> f = {"0.weight": torch.tensor([[8.0]]), "1.weight": torch.tensor([[8.0], [0.0]])}
        >>> reference = Importance(totals={name: torch.ones_like(total) for name, total in f.items()}, count=1)
        >>> data = [(torch.ones(1, 1), torch.tensor([0]))]
        >>> inputs = UnlearningInputs(forget=Importance(totals=f, count=1), reference=reference, forget_data=data)
        >>> _ = DepthDampening(fraction=1.0).unlearn(model, inputs)
        >>> [p.tolist() for p in model.parameters()]  # the last layer suffices
        [[[1.0]], [[0.0125...], [0.5]]]
    """

    name: ClassVar[str] = "ssd-depth"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_IMPORTANCE, Need.REFERENCE_IMPORTANCE, Need.FORGET_DATA})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(deterministic=True)

    fraction: float = option(0.1, above=0.0, at_most=1.0, doc="share of the weights that α selects", search=(1e-3, 0.3))
    lam: float = option(0.1, symbol="λ", at_least=0.0, doc="dampening constant of the last layer", search=(1e-2, 1.0))
    spread: float = option(3.0, symbol="b", at_least=1.0, doc="S of the first layer; 1: the same in all layers")
    accuracy: float = option(0.1, symbol="a", at_least=0.0, at_most=1.0, doc="forget accuracy to stop at")

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        assert inputs.forget is not None, "FORGET_IMPORTANCE is among the needs"
        assert inputs.reference is not None, "REFERENCE_IMPORTANCE is among the needs"
        alpha = ratio_threshold(inputs.forget, inputs.reference, fraction=self.fraction)
        f, r = inputs.forget.mean(), inputs.reference.mean()
        layers: dict[str, dict[str, nn.Parameter]] = {}
        for name, p in trainable(model).items():
            layers.setdefault(name.rpartition(".")[0], {})[name] = p
        for place, layer in enumerate(reversed(layers.values())):
            scale = 1 + (self.spread - 1) * place / max(len(layers) - 1, 1)
            for name, p in layer.items():
                self._dampen(p, f[name], r[name], alpha=scale * alpha, lam=scale * self.lam)
            if self._forgotten(model, inputs):
                break

    def _dampen(self, p: nn.Parameter, forget: Tensor, reference: Tensor, *, alpha: float, lam: float) -> None:
        theta = p.detach().to(torch.float64)
        f, r = forget.to(theta), reference.to(theta)
        beta = (lam * r / f).clamp(max=1.0).nan_to_num(nan=0.0)
        with torch.no_grad():
            p.copy_(torch.where(f > alpha * r, (theta * beta).to(p.dtype), p))

    def _forgotten(self, model: nn.Module, inputs: UnlearningInputs) -> bool:
        assert inputs.forget_data is not None, "FORGET_DATA is among the needs"
        seen = loss_and_accuracy(model, inputs.forget_data, objective=inputs.objective).accuracy
        if seen is None:
            raise ConfigurationError("ssd-depth stops at an accuracy: expected the objective CrossEntropy")
        return seen <= self.accuracy


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [DepthDampening]
