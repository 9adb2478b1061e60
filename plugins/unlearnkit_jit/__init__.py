"""JiT: make the model smooth around what is to be forgotten, without any other data."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    Descent,
    Evidence,
    Need,
    Pass,
    Unlearner,
    UnsupportedModelError,
    class_logits,
    fine_tune,
    hookimpl,
    option,
)


@final
@attrs.frozen(kw_only=True)
class JustInTime(Unlearner):
    """Minimise 1/N·Σ_j ‖f(x) − f(x + ξ_j)‖₂ / ‖ξ_j‖₂ over D_f, ξ_j ~ N(0, σ²·I): the local Lipschitz constant.

    f are the logits, the norms are of each sample by itself, the mean is over the batch. By default the gradient goes
    through f(x) only and f(x + ξ) is held constant, as in the authors' code: f(x) is drawn to what is around it, and
    where f is linear nothing happens; ``through = "both"`` is the gradient of the equation, which shrinks the slope
    itself. The authors' code sums over the batch, and clips x + ξ to the range of the batch; neither is done here.
    Neither labels nor the retain set are used (zero-shot), and nothing protects the rest of the model: σ and η have to
    be tuned to each model, and on a small one there may be no value that forgets without destroying.

    In eval mode: noise in the place of data must not enter BatchNorm's statistics, so that no buffer changes.

    Source: Foster et al. 2024 (An Information Theoretic Approach to Machine Unlearning; first called Zero-Shot
    Machine Unlearning at Scale via Lipschitz Regularization), the section on the method; N = 25 and plain gradient
    descent from the authors' code, ``lipschitz.py``.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> forget = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> before = model.weight.norm()
        >>> _ = JustInTime(epochs=5, learning_rate=0.1, through="both").unlearn(model, Evidence(forget_data=forget))
        >>> bool(model.weight.norm() < before)
        True
    """

    name: ClassVar[str] = "jit"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA})

    sigma: float = option(0.5, symbol="σ", above=0.0, doc="size of the noise, in units of the input")
    draws: int = option(25, symbol="N", at_least=1, doc="noisy copies of each sample")
    through: str = option(
        "clean", choices=("clean", "both"), doc="what the gradient goes through: f(x), or f(x + ξ) too"
    )
    epochs: int = option(1, at_least=1, doc="passes over the forget set")
    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size of plain gradient descent")

    def apply(self, model: nn.Module, evidence: Evidence) -> None:
        """Smooth the model; see `unlearnkit.Unlearner.apply`."""

        def roughness(student: nn.Module, batch: Any) -> Tensor:
            clean = class_logits(evidence.objective, student, batch).flatten(1)
            noisy, total = _Noisy(student, self.sigma), torch.zeros((), device=clean.device)
            for _ in range(self.draws):
                with torch.set_grad_enabled(self.through == "both"):
                    moved = class_logits(evidence.objective, noisy, batch).flatten(1)
                total = total + ((clean - moved).norm(dim=1) / noisy.size).mean()
            return total / self.draws

        descent = Descent(optimizer="sgd", learning_rate=self.learning_rate, momentum=0.0)
        fine_tune(
            model,
            Pass.epochs(evidence.forget_data, roughness, count=self.epochs),
            descent=descent,
            evidence=evidence,
        )


@final
class _Noisy(nn.Module):
    """A model whose input is moved by Gaussian noise before it is seen; ``size`` is how far each sample was moved."""

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__()
        self._sees = [model]  # in a list, so that it does not become a part of this module
        self._sigma = sigma
        self.size = torch.ones(())

    def forward(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            seen = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise UnsupportedModelError(f"jit adds noise to the input: expected a floating tensor, saw {seen}")
        noise = self._sigma * torch.randn_like(x)
        self.size = noise.flatten(1).norm(dim=1)
        return self._sees[0](x + noise)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    """Offer the method of this package."""
    return [JustInTime]
