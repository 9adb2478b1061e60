"""Whether corrupted samples get the label that they had before they were corrupted."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import InapplicableError, ModelOutputs, Values, classification_of, map_rows


@final
@attrs.frozen(kw_only=True)
class Healed(Metric):
    """Σ_i [ŷ_i = true label]/n over corrupted samples: known ones, which are forgotten, and unknown ones in the rest.

    Batches are ``(x, …, true, corruption, label)``, as `unlearnkit.data.Corruption` makes them.
    """

    name: ClassVar[str] = "healed"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        better="higher",
        source="Goel et al. 2024 (Corrective Machine Unlearning), Acc_corr",
        cost="one pass of each model over two splits",
        trust="on training samples, with their triggers; read it beside the accuracy on retained test data",
    )

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs, objective, values = ModelOutputs(inputs), inputs.objective, Values()

        def share(split: str, state: int, model: nn.Module) -> float:
            classification, batches = classification_of(objective), outputs.batches(split)

            def predict(batch: Any) -> tuple[Tensor, Tensor]:
                if not isinstance(batch, Sequence) or len(batch) < 4:
                    raise InapplicableError("the data have no labels of corruption: set [forget] corrupted")
                right = torch.where(batch[-2] == state, batch[-3], -1)
                return classification.logits(model, batch), right

            logits, right = map_rows(model, batches, predict)
            chosen = right >= 0
            if not chosen.any():
                raise InapplicableError("there is no such corrupted sample")
            return float((logits[chosen].argmax(axis=1) == right[chosen]).mean())

        for name, split, state in (("known", "forget-train", 2), ("unknown", "retain-train", 1)):
            values |= outputs.for_each_model(name, partial(share, split, state))
        return values
