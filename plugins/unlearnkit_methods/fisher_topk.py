"""Fisher top-k: set to zero the few weights that matter most to the forget set, compared with the reference."""

import math
from collections.abc import Iterable
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import Importance, Need, Unlearner, UnlearnerTraits, UnlearningInputs, hookimpl, option
from unlearnkit.models import trainable


@final
@attrs.frozen(kw_only=True)
class FisherTopK(Unlearner):
    """θ' = 0 for the k weights with the largest F_f/F_r, else θ.

    k is a number of weights or, by default, ⌊fraction · n⌋ of n; for the whole model or, with ``scope="tensor"``, for
    each parameter by itself. Fewer are zeroed only where fewer have F_f > 0. x/0 is the largest ratio. Equal ratios
    (all x/0 among them) are ordered by F_f, the larger first, and weights equal in both by their place in the model,
    the earlier first: a rule of one weight could not zero exactly k of several that tie.

    Good for: the same as `ssd`, with a fixed share of the weights: a whole class in the outputs.

    Source: the ratio is that of Foster, Schoepf and Brintrup 2024 (Fast Machine Unlearning Without Retraining Through
    Selective Synaptic Dampening), with a number of weights in the place of the threshold α.

    Examples:
        >>> model = nn.Linear(4, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> forget = Importance(totals={"weight": torch.tensor([[2.0, 6.0, 3.0, 9.0]])}, count=1)
        >>> full = Importance(totals={"weight": torch.tensor([[1.0, 1.0, 0.0, 3.0]])}, count=1)
        >>> FisherTopK(k=2).unlearn(model, UnlearningInputs(forget=forget, reference=full)).changed
        2
        >>> model.weight.tolist()
        [[1.0, 0.0, 0.0, 1.0]]
    """

    name: ClassVar[str] = "fisher-topk"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_IMPORTANCE, Need.REFERENCE_IMPORTANCE})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(deterministic=True)

    fraction: float = option(
        0.01, at_least=0, at_most=1, doc="of the weights to zero, rounded down", search=(1e-3, 0.5)
    )
    k: int = option(
        0,
        symbol="k",
        at_least=0,
        doc="how many weights to zero, instead of a fraction; 0 for the fraction",
        replaces="fraction",
    )
    scope: str = option("global", choices=("global", "tensor"), doc="k of the whole model, or k of each parameter")

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        assert inputs.forget is not None, "FORGET_IMPORTANCE is among the needs"
        assert inputs.reference is not None, "REFERENCE_IMPORTANCE is among the needs"
        chosen = self.select(inputs.forget, inputs.reference, names=list(trainable(model)))
        with torch.no_grad():
            for name, p in trainable(model).items():
                p.masked_fill_(chosen[name].to(p.device), 0.0)

    def select(self, forget: Importance, reference: Importance, *, names: Iterable[str]) -> dict[str, Tensor]:
        """Return which weights are zeroed: parameter name, in the model's order, to a boolean tensor."""
        f, r = forget.mean(), reference.mean()
        f = {name: f[name].double() for name in names}
        flat = {name: (t.reshape(-1), r[name].to(t).reshape(-1)) for name, t in f.items()}
        if self.scope == "tensor":
            masks = [largest(part, whole, self._count(len(part))) for part, whole in flat.values()]
        else:
            part, whole = (torch.cat(column) for column in zip(*flat.values(), strict=True))
            sizes = [t.numel() for t in f.values()]
            masks = list(torch.split_with_sizes(largest(part, whole, self._count(len(part))), sizes))
        return {name: mask.reshape(t.shape) for (name, t), mask in zip(f.items(), masks, strict=True)}

    def _count(self, size: int) -> int:
        # 0.29 · 100 is 28.999…96 in floating point: a part in 10⁹ is forgiven before rounding down.
        return min(self.k or math.floor(self.fraction * size * (1 + 1e-9)), size)

    def remarks(self, inputs: UnlearningInputs) -> tuple[str, ...]:
        """Say when no weight can be selected, because the fraction of the weights is less than one of them."""
        if inputs.forget is None or self.k:
            return ()
        sizes = [t.numel() for t in inputs.forget.totals.values()]
        largest_group = max(sizes) if self.scope == "tensor" else sum(sizes)
        if self._count(largest_group):
            return ()
        return (f"fraction = {self.fraction:g} of {largest_group} weights is less than one: nothing can be selected.",)


def largest(forget: Tensor, reference: Tensor, k: int) -> Tensor:
    """Return a mask of the k elements with the largest F_f/F_r, both float64, in the order that `FisherTopK` states."""
    mask = torch.zeros_like(forget, dtype=torch.bool)
    candidates = (forget > 0).nonzero().squeeze(1)
    f = forget[candidates]
    order = f.argsort(descending=True, stable=True)
    ratio = (f / reference[candidates])[order]
    order = order[ratio.argsort(descending=True, stable=True)]
    mask[candidates[order[:k]]] = True
    return mask


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [FisherTopK]
