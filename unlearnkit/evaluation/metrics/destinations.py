"""Where forgotten samples go, against where a retrained model sends them."""

from collections.abc import Mapping
from functools import partial
from itertools import permutations
from typing import ClassVar, final

import attrs
from torch import nn

from unlearnkit.evaluation.destinations import destinations
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.metrics.model_outputs import ModelOutputs, Values, answer
from unlearnkit.evaluation.outputs import mean

_SPLIT = "forget-train"


@final
@attrs.frozen(kw_only=True)
class WhereTheyGo(Metric):
    """TV = ½·Σ_c |h_u(c) − h_r(c)|, h the shares of classes that forgotten samples are predicted to be.

    ``"distance"``, averaged over the retrained models, and ``"agreement"``, the share of samples of which model and
    retrained model predict the same; ``"retrained …"`` is between retrained models. The counts behind it are those of
    `unlearnkit.evaluation.destinations`.
    """

    name: ClassVar[str] = "destinations"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        unit="fraction",
        source="total variation: Levin et al. 2009, proposition 4.2",
        cost="one pass of each model over the forget set; one retrained model, two for the value beside it",
        trust="read it against the value between retrained models; equal shares may be of different samples",
    )

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Compare predictions; see `unlearnkit.Metric.measure`."""
        sheet = ModelOutputs(inputs)
        values: Values = {}
        for name in ("distance", "agreement"):
            for prefix, model in sheet.named.items():
                values[f"{prefix}{name}"] = answer(partial(_to_retrained, sheet, name, model))
            values[f"retrained {name}"] = answer(partial(_among_retrained, sheet, name))
        return values


def _to_retrained(sheet: ModelOutputs, name: str, model: nn.Module) -> float:
    return _compared(sheet, name, model, sheet.retrained())


def _among_retrained(sheet: ModelOutputs, name: str) -> float:
    return mean(_compared(sheet, name, one, (other,)) for one, other in permutations(sheet.retrained(at_least=2), 2))


def _compared(sheet: ModelOutputs, name: str, model: nn.Module, retrained: tuple[nn.Module, ...]) -> float:
    found = destinations(sheet.of(model, _SPLIT).logits, [sheet.of(known, _SPLIT).logits for known in retrained])
    return found.distance if name == "distance" else found.agreement
