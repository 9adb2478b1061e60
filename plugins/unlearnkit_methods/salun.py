"""SalUn: learn wrong labels for what is to be forgotten, with the weights that matter to it and no others."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    ConfigurationError,
    EpochConfig,
    Need,
    OptimizerConfig,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    class_labels,
    class_logits,
    fine_tune,
    hookimpl,
    option,
)

IGNORED = -100


@final
@attrs.frozen(kw_only=True)
class SalUn(Unlearner):
    """Minimise ℓ(θ; x_f, y') and α·ℓ(θ; x_r, y_r) over the weights with F_f ≥ γ alone; y' ≠ y_f is drawn at random.

    γ is such that the given share of all trainable weights is salient (the median for 0.5); weights with F_f = 0 never
    are, equal ones at the threshold all are. The paper takes |∇ℓ(D_f)| as saliency; F_f here is an importance, of
    whatever estimator the run uses, so that the mask needs no second look at the data. All other weights keep their
    bits, whatever the optimiser. In each epoch a pass over the forget set, with labels y' drawn anew and uniformly from
    the other classes, comes before one over the retain set. (The authors' code draws from all classes, the right one
    included, and shuffles both sets into one for CIFAR-100.)

    By default in train mode, as in the authors' code; ``mode = "eval"`` leaves BatchNorm's buffers as they are.

    Source: Fan et al. 2024 (SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency), the weight
    saliency map and unlearning by random labels; the order of the two passes from the authors' code,
    ``Classification/unlearn/RL.py``.

    Example:
        >>> values = {"weight": torch.tensor([[4.0], [1.0]]), "bias": torch.tensor([3.0, 0.0])}
        >>> {name: mask.tolist() for name, mask in saliency(values, share=0.5).items()}
        {'weight': [[True], [False]], 'bias': [True, False]}
    """

    name: ClassVar[str] = "salun"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_IMPORTANCE, Need.FORGET_DATA, Need.RETAIN_DATA})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(edits_buffers=True)

    share: float = option(0.5, above=0.0, at_most=1.0, doc="largest share of weights that may change")
    alpha: float = option(1.0, symbol="α", at_least=0.0, doc="weight of the retain loss")
    epochs: int = option(5, at_least=1, doc="passes over both sets")
    optimizer: str = option("adam", choices=("adam", "adamw", "sgd"), doc="which optimiser")
    learning_rate: float = option(3e-3, symbol="η", above=0.0, doc="step size")
    momentum: float = option(0.9, at_least=0.0, at_most=1.0, doc="of sgd")
    weight_decay: float = option(0.0, at_least=0.0, doc="L2 penalty; decoupled for adamw")
    mode: str = option("train", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    def promises(self) -> UnlearnerTraits:
        """Promise to leave buffers alone in eval mode."""
        return attrs.evolve(self.traits, edits_buffers=self.mode == "train")

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        """Learn wrong labels under the mask; see `unlearnkit.Unlearner.apply`."""
        assert inputs.forget is not None, "FORGET_IMPORTANCE is among the needs"

        def relabelled(student: nn.Module, batch: Any) -> Tensor:
            logits, labels = class_logits(inputs.objective, student, batch), class_labels(inputs.objective, batch)
            wrong = other_labels(labels, classes=logits.shape[1])
            return nn.functional.cross_entropy(logits, wrong, ignore_index=IGNORED)

        def kept(student: nn.Module, batch: Any) -> Tensor:
            return self.alpha * inputs.objective.losses(student, batch).mean()

        optimizer = OptimizerConfig(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        passes = [
            one
            for pair in zip(
                EpochConfig.epochs(inputs.forget_data, relabelled, count=self.epochs, name="relabelled epoch"),
                EpochConfig.epochs(inputs.retain_data, kept, count=self.epochs, name="retain epoch"),
                strict=True,
            )
            for one in pair
        ]
        masks = saliency(inputs.forget.totals, share=self.share)
        fine_tune(model, passes, optimizer=optimizer, inputs=inputs, masks=masks, training=self.mode == "train")


def saliency(forget: Mapping[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """Select the weights that matter most to the forget set, over all parameters together.

    Args:
        forget: F_f ≥ 0 by parameter name.
        share: Of all weights, how many at most (more only where several equal the smallest one selected).

    Returns:
        A boolean tensor for each parameter: True where F_f > 0 is among the largest.
    """
    every = torch.cat([total.flatten() for total in forget.values()])
    count = max(1, round(share * every.numel()))
    threshold = every.topk(count).values[-1]
    return {name: (total >= threshold) & (total > 0) for name, total in forget.items()}


def other_labels(labels: Tensor, *, classes: int) -> Tensor:
    """Draw another label for each, uniformly from the other classes.

    Args:
        labels: 0 to ``classes`` − 1, or −100 for no label, which stays.
        classes: How many there are, at least 2.

    Returns:
        Labels of the same shape, none equal to the one it replaces.

    Raises:
        ConfigurationError: There is no other class.
    """
    if classes < 2:
        raise ConfigurationError(f"salun draws wrong labels: expected at least 2 classes, saw {classes}")
    moved = (labels + torch.randint_like(labels, 1, classes)) % classes
    return torch.where(labels == IGNORED, labels, moved)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    """Offer the method of this package."""
    return [SalUn]
