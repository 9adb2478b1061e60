"""Fisher noise: add to every weight as much noise as the retain set tolerates."""

from collections.abc import Iterable
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import Need, Unlearner, UnlearnerTraits, UnlearningInputs, hookimpl, option
from unlearnkit.importance import Role
from unlearnkit.models import trainable


@final
@attrs.frozen(kw_only=True)
class FisherNoise(Unlearner):
    """θ' = θ + s·z with s = σ·max(F_r, φ)^(−γ) and z ~ N(0, 1), independent for every weight.

    By default γ = ½, as in the authors' code: the variance is σ²/F_r, with σ² = 10⁻⁶ and 1/F_r clamped at 10³, hence
    φ = 10⁻³. With γ = ¼ it is the equation of the paper, θ' = θ + (λσ_h²)^(¼)·F_r^(−¼)·z, whose (λσ_h²)^(¼) is σ here.
    A weight with F_r = 0 gets the largest deviation, σ·φ^(−γ).

    Measure F_r on the retain set: one of the full set protects what the forget set needs as well. The forget set is not
    used. The published code also averages the variance over the inputs of each unit, takes it tenfold in
    one-dimensional parameters and in the last layer, and zeroes the forgotten class's row there; these depend on the
    architecture and are left out.

    The draw depends on ``inputs.seed`` and on the order and the shapes of the trainable parameters only: it is made on
    the CPU in float64.

    Good for: a baseline: on the digits no setting forgot a class and kept the others.

    Source: Golatkar, Achille and Soatto 2020 (Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep
    Networks), Fisher forgetting, and the published code.

    Examples:
        >>> FisherNoise(sigma=0.5).deviation(torch.tensor([25.0, 0.25, 0.0]))
        tensor([ 0.1000,  1.0000, 15.8114])
        >>> FisherNoise(sigma=0.5, gamma=0.25, floor=0.0625).deviation(torch.tensor([16.0, 0.0]))
        tensor([0.2500, 1.0000])
    """

    name: ClassVar[str] = "fisher-noise"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCE_IMPORTANCE})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(deterministic=True)

    sigma: float = option(
        1e-3,
        symbol="σ",
        at_least=0,
        source="published code: σ² = 10⁻⁶",
        doc="scale of the noise; 0 changes nothing",
        search=(1e-5, 1e-1),
    )
    gamma: float = option(
        0.5, symbol="γ", at_least=0, at_most=1, doc="exponent: 0.5 as in the code, 0.25 as in the paper"
    )
    floor: float = option(
        1e-3, symbol="φ", above=0, source="published code: 1/F_r ≤ 10³", doc="a smaller F_r is taken as this"
    )

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        assert inputs.reference is not None, "REFERENCE_IMPORTANCE is among the needs"
        generator, mean = torch.Generator().manual_seed(inputs.seed), inputs.reference.mean()
        with torch.no_grad():
            for name, p in trainable(model).items():
                z = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                noise = (self.deviation(mean[name].to("cpu", torch.float64)) * z).to(p.device)
                p.copy_(torch.where(noise == 0, p, (p + noise).to(p.dtype)))  # −0 + 0 would be +0

    def deviation(self, reference: Tensor) -> Tensor:
        """Return s = σ·max(F_r, φ)^(−γ), the standard deviation of the noise, in the shape and dtype of F_r."""
        return self.sigma * reference.clamp(min=self.floor) ** -self.gamma

    def remarks(self, inputs: UnlearningInputs) -> tuple[str, ...]:
        """Say when the reference importance holds the forget set too."""
        if inputs.reference is None or inputs.reference.role is not Role.FULL:
            return ()
        remedy = "measure it on the retain set (importance.reference = 'retain')."
        return (f"F_r was measured on the full set, so the noise spares what the forget set needs too: {remedy}",)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [FisherNoise]
