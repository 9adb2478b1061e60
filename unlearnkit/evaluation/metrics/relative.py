"""RMIA on the forget set, with retrained models as references."""

from collections.abc import Mapping
from typing import ClassVar, final

import attrs
import numpy as np
from torch import nn

from unlearnkit.evaluation.arrays import Floats
from unlearnkit.evaluation.features import label_losses
from unlearnkit.evaluation.membership import AttackSuccess, attack_success, rmia_scores
from unlearnkit.evaluation.membership.rmia import MOST
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.metrics.membership import attacked, unseen_halves
from unlearnkit.evaluation.metrics.model_outputs import ModelOutputs
from unlearnkit.evaluation.outputs import Outputs
from unlearnkit.utils.options import option


@final
@attrs.frozen(kw_only=True)
class RelativeMembership(Metric):
    """RMIA: forgotten against unseen samples of the same kind, with one to four retrained models as references.

    The references were not trained on the forget set, nor on unseen samples; the population is retained test data. A
    retrained model under attack is not its own reference. Names as in `EntropyAttack`. See
    `unlearnkit.evaluation.membership.rmia_scores`.
    """

    name: ClassVar[str] = "rmia"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        unit="fraction",
        source="Zarifzadeh et al. 2024",
        cost="one pass of each model over three splits; one retrained model, two for the value beside it",
        trust="the strongest attack here with few models; a low value is still no proof",
    )

    gamma: float = option(2.0, symbol="γ", at_least=1, doc="how much more likely a member must be")
    a: float = option(0.3, symbol="a", at_least=0, at_most=1, doc="1: members are no more likely than non-members")
    seed: int = option(0, at_least=0, doc="of the halves of unseen data")

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Attack; see `unlearnkit.Metric.measure`."""
        return attacked(inputs, self._attack)

    def _attack(self, sheet: ModelOutputs, model: nn.Module) -> AttackSuccess:
        return attack_success(*self.scores(sheet, model))

    def scores(self, sheet: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        """Score forgotten samples and unseen ones of the same kind; higher means "member".

        Args:
            sheet: The evaluation's outputs.
            model: Under attack.

        Returns:
            Both, in this order.
        """
        at_least = 2 if sheet.is_retrained(model) else 1
        references = [known for known in sheet.retrained(at_least) if known is not model][:MOST]
        splits = [self._splits(sheet, one) for one in (model, *references)]
        forgotten, unseen, population = (np.stack(parts) for parts in zip(*splits, strict=True))
        first, second = (
            rmia_scores(
                judged[0],
                judged[1:],
                population=population[0],
                population_references=population[1:],
                gamma=self.gamma,
                a=self.a,
            )
            for judged in (forgotten, unseen)
        )
        return first, second

    def _splits(self, sheet: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats, Floats]:
        population, unseen = unseen_halves(sheet, model, self.seed)
        return _confidences(sheet.of(model, "forget-train")), _confidences(unseen), _confidences(population)


def _confidences(outputs: Outputs) -> Floats:
    return np.exp(-label_losses(outputs.logits, outputs.labels))
