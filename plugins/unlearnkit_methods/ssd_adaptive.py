"""Adaptive selective synaptic dampening: choose α from the importances and the size of the forget set."""

import math
from collections.abc import Iterable, Iterator
from typing import ClassVar, Self, final

import attrs
import torch
from torch import Tensor

from unlearnkit import (
    ElementwiseUnlearner,
    Importance,
    MismatchError,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    hookimpl,
    option,
)
from unlearnkit.importance import Role


@final
@attrs.frozen(kw_only=True)
class AdaptiveSynapticDampening(ElementwiseUnlearner):
    """θ' = θ·min(λ·F_r/F_f, 1) where F_f/F_r > α, else θ; α is the q-th percentile of all F_f/F_r.

    q = 100 − ln(1 + 100·p), p = |D_f|/|D|: the larger the forget set, the more weights are dampened.

    The percentile, of finite ratios only as in the published code, is the largest one at or below q; numpy's, which is
    interpolated, selects the same weights, because the comparison is strict. Weights that tie at α are kept. A weight
    with F_r = 0 is dampened (to 0) where F_f > 0 and kept where F_f = 0, as by SSD at any α.

    F_r is measured on the full set D; where it was measured on the retain set, |D| = |D_f| + |D_r|.

    Good for: the same as `ssd`, without an α to choose; λ = 0.1 forgets a digit, λ = 1 half of it.

    Source: Schoepf, Foster and Brintrup 2024 (Parameter-tuning-free data entry error unlearning with adaptive
    selective synaptic dampening); the same in the published code of Schoepf, Foster and Brintrup 2024 (Potion: Towards
    Poison Unlearning), which has λ = 1.

    Examples:
        >>> forget = Importance(totals={"w": torch.tensor([1.0, 2.0, 8.0, 0.0])}, count=1)
        >>> full = Importance(totals={"w": torch.tensor([2.0, 2.0, 2.0, 0.0])}, count=1)
        >>> ready = AdaptiveSynapticDampening().prepare(forget, full)  # p = 1, q = 95.4, ratios 0.5, 1 and 4
        >>> ready.alpha
        1.0
        >>> ready.rule(torch.ones(4), forget.totals["w"], full.totals["w"])
        tensor([1.0000, 1.0000, 0.2500, 1.0000])
    """

    name: ClassVar[str] = "ssd-adaptive"
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(
        local=True, non_amplifying=True, sign_preserving=True, odd=True, scale_free=True, monotone={"alpha", "lam"}
    )

    lam: float = option(1.0, symbol="λ", at_least=0, doc="dampening constant")
    alpha: float | None = option(
        None, symbol="α", at_least=0, doc="selection weighting; left out, it is the percentile"
    )

    def prepare(self, forget: Importance, reference: Importance | None) -> Self:
        """Choose α, where it was left out."""
        assert reference is not None, "REFERENCE_IMPORTANCE is among the needs"
        return self if self.alpha is not None else attrs.evolve(self, alpha=percentile(forget, reference))

    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        """Dampen where F_f/F_r > α; compare quotients, not products, so that ties with α are exact."""
        if self.alpha is None:
            raise MismatchError("ssd-adaptive: expected an object from prepare(), saw α = None: call unlearn()")
        beta = (self.lam * reference / forget).clamp(max=1.0).nan_to_num(nan=0.0)  # (λ·F_r)/F_f and ∞·0 as in SSD
        return torch.where(_ratio(forget, reference) > self.alpha, theta * beta, theta)

    def remarks(self, inputs: UnlearningInputs) -> tuple[str, ...]:
        """Say when α is a tie of the largest ratios, so that no weight can be selected."""
        if self.alpha is not None or inputs.forget is None or inputs.reference is None:
            return ()
        alpha = percentile(inputs.forget, inputs.reference)
        if any(bool((ratio > alpha).any()) for ratio in _ratios(inputs.forget, inputs.reference)):
            return ()
        return (f"α = {alpha:.6g}, the chosen percentile of F_f/F_r, is also their largest: nothing can be selected.",)


def percentile(forget: Importance, reference: Importance) -> float:
    """Return α: the percentile 100 − ln(1 + 100·p) of the finite ratios F_f/F_r of all weights; 0 if none is finite."""
    sampled = reference.fingerprint is not None and reference.fingerprint.sample  # then its count is that of all
    if sampled and reference.count == 1:
        raise MismatchError(f"ssd-adaptive: expected normalise = true beside a reference from a sample ({sampled})")
    sizes = (forget.samples, reference.samples) if forget.samples and reference.samples and not sampled else None
    part, whole = sizes or (forget.count, reference.count)
    if reference.role is Role.RETAIN:
        whole += part
    q = 1 - math.log1p(100 * min(1.0, part / whole)) / 100
    ratios = torch.cat([ratio[torch.isfinite(ratio)] for ratio in _ratios(forget, reference)])
    if not len(ratios):
        return 0.0
    return float(ratios.kthvalue(1 + math.floor(q * (len(ratios) - 1))).values)


def _ratios(forget: Importance, reference: Importance) -> Iterator[Tensor]:
    f, r = forget.mean(), reference.mean()
    return (_ratio(f[name], r[name].to(f[name].device)).reshape(-1) for name in f)


def _ratio(forget: Tensor, reference: Tensor) -> Tensor:
    return forget.double() / reference.double()  # float64, so that no quotient of float32 over- or underflows


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [AdaptiveSynapticDampening]
