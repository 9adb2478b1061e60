"""SalUn: learn wrong labels for the forget set, changing only the weights that matter to it."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl, option
from unlearnkit.unlearning import EpochConfig, wrong_label_loss


@final
@attrs.frozen(kw_only=True)
class SalUn(TrainingUnlearner):
    """Minimise ℓ(θ; x_f, y') and α·ℓ(θ; x_r, y_r) over the weights with F_f ≥ γ alone; y' ≠ y_f is drawn at random.

    γ is such that the given share of all trainable weights is salient (the median for 0.5); weights with F_f = 0 never
    are, equal ones at the threshold all are. F_f is the importance of the run; the paper takes |∇ℓ(D_f)|. All other
    weights keep their bits, whatever the optimiser. In each epoch a pass over the forget set, with labels y' drawn anew
    and uniformly from the other classes, comes before one over the retain set. (The authors' code draws from all
    classes, the right one included, and shuffles both sets into one for CIFAR-100.)

    Train mode by default, as in the authors' code.

    Good for: whole classes, when the outputs are what matters: most of the features stay.

    Source: Fan et al. 2024 (SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency), the weight
    saliency map and unlearning by random labels; the order of the two passes from the authors' code,
    ``Classification/unlearn/RL.py``.

    Examples:
        >>> values = {"weight": torch.tensor([[4.0], [1.0]]), "bias": torch.tensor([3.0, 0.0])}
        >>> {name: mask.tolist() for name, mask in saliency(values, share=0.5).items()}
        {'weight': [[True], [False]], 'bias': [True, False]}
    """

    name: ClassVar[str] = "salun"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_IMPORTANCE, Need.FORGET_DATA, Need.RETAIN_DATA})

    share: float = option(
        0.5, above=0.0, at_most=1.0, doc="largest share of weights that may change", search=(0.1, 1.0)
    )
    alpha: float = option(1.0, symbol="α", at_least=0.0, doc="weight of the retain loss", search=(0.1, 10.0))

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:  # noqa: ARG002
        def wrong_labels(student: nn.Module, batch: Any) -> Tensor:
            return wrong_label_loss(inputs.objective, student, batch)

        def retain(student: nn.Module, batch: Any) -> Tensor:
            return self.alpha * inputs.mean_loss(student, batch)

        forget_epochs = EpochConfig.epochs(inputs.forget_data, wrong_labels, count=self.epochs, name="relabelled epoch")
        retain_epochs = EpochConfig.epochs(inputs.retain_data, retain, count=self.epochs, name="retain epoch")
        return chain.from_iterable(zip(forget_epochs, retain_epochs, strict=True))

    def masks(self, inputs: UnlearningInputs) -> Mapping[str, Tensor]:
        assert inputs.forget is not None, "FORGET_IMPORTANCE is among the needs"
        return saliency(inputs.forget.totals, share=self.share)


def saliency(forget: Mapping[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """Select the share of all weights with the largest F_f > 0, and all that tie with the smallest of them."""
    every = torch.cat([total.flatten() for total in forget.values()])
    count = max(1, round(share * every.numel()))
    threshold = every.topk(count).values[-1]
    return {name: (total >= threshold) & (total > 0) for name, total in forget.items()}


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [SalUn]
