"""JiT: make the model smooth around the forget set, without any other data."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, UnsupportedModelError, hookimpl, option
from unlearnkit.unlearning import EpochConfig, class_logits


@final
@attrs.frozen(kw_only=True)
class JustInTime(TrainingUnlearner):
    """Minimise 1/N·Σ_j ‖f(x) − f(x + ξ_j)‖₂ / ‖ξ_j‖₂ over D_f, ξ_j ~ N(0, σ²·I): the local Lipschitz constant.

    f are the logits; norms are per sample. The defaults are those of the authors' code: the sum over a batch; x + ξ
    clipped to the range of the batch's values, and ξ what is left of the noise; σ and η as for a whole class with VGG;
    plain gradient descent; and a gradient through f(x) only, which draws f(x) to what is around it and, where f is
    linear, does nothing on average. ``through = "both"`` is the gradient of the equation, which shrinks the slope
    itself. In the paper each sample makes a step of its own: that is a batch size of 1 here.

    Neither labels nor the retain set are used (zero-shot), and nothing protects the rest of the model: tune σ and η. Of
    18 settings tried on ``small_cnn`` and the digits, those that forgot half of a digit kept at most 0.76 of the rest.
    It runs in eval mode, so that no noise enters BatchNorm's statistics.

    Good for: when the forget set is all that is at hand; on the digits no setting forgot a class and kept the
    others.

    Source: Foster, Fogarty, Schoepf, Öztireli and Brintrup 2024 (An Information Theoretic Approach to Machine
    Unlearning; first called Zero-Shot Machine Unlearning at Scale via Lipschitz Regularization), the loss and the
    algorithm of JiT; the authors' code, ``lipschitz.py`` and ``forget_full_class_main.py``.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> before, inputs = model.weight.norm(), UnlearningInputs(forget_data=[(torch.eye(2), torch.tensor([0, 1]))])
        >>> _ = JustInTime(epochs=5, learning_rate=0.1, through="both").unlearn(model, inputs)
        >>> bool(model.weight.norm() < before)
        True
    """

    name: ClassVar[str] = "jit"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA})

    sigma: float = option(0.5, symbol="σ", above=0.0, doc="size of the noise, in units of the input", search=(0.1, 1.0))
    draws: int = option(25, symbol="N", at_least=1, doc="noisy copies of each sample")
    clip: bool = option(True, doc="keep x + ξ between the smallest and the largest value of the batch")
    reduction: str = option("sum", choices=("sum", "mean"), doc="over the samples of a batch")
    through: str = option(
        "clean", choices=("clean", "both"), doc="what the gradient goes through: f(x), or f(x + ξ) too"
    )
    epochs: int = option(1, at_least=1, doc="passes over the forget set")
    learning_rate: float = option(
        3e-4,
        symbol="η",
        above=0.0,
        source="authors' code, VGG",
        doc="step size of plain gradient descent",
        search=(3e-5, 3e-2),
    )
    # Fixed, no options: plain gradient descent in eval mode.
    optimizer: str = attrs.field(default="sgd", init=False)
    momentum: float = attrs.field(default=0.0, init=False)
    weight_decay: float = attrs.field(default=0.0, init=False)
    mode: str = attrs.field(default="eval", init=False)

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:  # noqa: ARG002
        def roughness(student: nn.Module, batch: Any) -> Tensor:
            clean = class_logits(inputs.objective, student, batch).flatten(1)
            noisy, total = _Noisy(student, self.sigma, clip=self.clip), torch.zeros((), device=clean.device)
            for _ in range(self.draws):
                with torch.set_grad_enabled(self.through == "both"):
                    moved = class_logits(inputs.objective, noisy, batch).flatten(1)
                total = total + ((clean - moved).norm(dim=1) / noisy.size).sum()
            return total / (self.draws if self.reduction == "sum" else self.draws * len(clean))

        return EpochConfig.epochs(inputs.forget_data, roughness, count=self.epochs)


@final
class _Noisy(nn.Module):
    """Adds Gaussian noise to the input of a model; ``size`` is the norm of the noise of each sample."""

    def __init__(self, model: nn.Module, sigma: float, *, clip: bool) -> None:
        super().__init__()
        self._model = [model]  # in a list, so that it does not become a part of this module
        self._sigma, self._clip = sigma, clip
        self.size = torch.ones(())

    def forward(self, x: Any = None, **named: Any) -> Any:
        if named or not isinstance(x, Tensor) or not x.is_floating_point():
            seen = str(x.dtype) if isinstance(x, Tensor) else ", ".join(named) or type(x).__name__
            raise UnsupportedModelError(
                f"jit adds noise to the input: expected one floating tensor by position, saw {seen}"
            )
        moved = x + self._sigma * torch.randn_like(x)
        if self._clip:
            moved = moved.clamp(x.amin(), x.amax())
        # Where clipping leaves nothing of the noise, 0/0 is 0.
        self.size = (moved - x).flatten(1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
        return self._model[0](moved)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [JustInTime]
