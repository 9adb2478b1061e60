"""RMIA: is a sample more likely under the model than other samples are, both relative to reference models?"""

from typing import ClassVar, final

import attrs
import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from unlearnkit.evaluation.arrays import Floats, floats
from unlearnkit.evaluation.membership.attacks import MembershipAttack, unseen_halves
from unlearnkit.evaluation.metric import MetricTraits
from unlearnkit.evaluation.model_outputs import ModelOutputs
from unlearnkit.utils.errors import ConfigurationError, MismatchError
from unlearnkit.utils.options import option

MOST = 4  # reference models: the attack is made for few
_TINY = 1e-30


@final
@attrs.frozen(kw_only=True)
class RelativeMembership(MembershipAttack):
    """RMIA: forgotten against unseen samples of the same kind, with one to four retrained models as references.

    The population is retained test data. A retrained model under attack is not its own reference.
    """

    name: ClassVar[str] = "rmia"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        unit="fraction",
        source="Zarifzadeh et al. 2024",
        cost="one pass of each model over three splits; one retrained model, two for the retrained models' own value",
        trust="the strongest attack here with few models; a low value is still no proof",
    )

    gamma: float = option(2.0, symbol="γ", at_least=1, doc="how much more likely a member must be")
    a: float = option(0.3, symbol="a", at_least=0, at_most=1, doc="1: members are no more likely than non-members")
    seed: int = option(0, at_least=0, doc="of the halves of unseen data")

    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        retrained = outputs.retrained()
        if any(known is model for known in retrained):
            retrained = outputs.retrained(at_least=2)
        references = [known for known in retrained if known is not model][:MOST]
        splits = [self._splits(outputs, each) for each in (model, *references)]
        forgotten, unseen, population = (np.stack(parts) for parts in zip(*splits, strict=True))

        def judge(samples: Floats) -> Floats:
            return rmia_scores(
                samples[0],
                samples[1:],
                population=population[0],
                population_references=population[1:],
                gamma=self.gamma,
                a=self.a,
            )

        return judge(forgotten), judge(unseen)

    def _splits(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats, Floats]:
        population, unseen = unseen_halves(outputs, model, self.seed)
        return outputs.of(model, "forget-train").confidences, unseen.confidences, population.confidences


def rmia_scores(
    target: ArrayLike | Tensor,
    references: ArrayLike | Tensor,
    *,
    population: ArrayLike | Tensor,
    population_references: ArrayLike | Tensor,
    gamma: float = 2.0,
    a: float = 0.3,
) -> Floats:
    """Return the share of population samples z with [p(x|θ)/p(x)] / [p(z|θ)/p(z)] ≥ γ for each x (offline)."""
    if not gamma >= 1 or not 0 <= a <= 1:
        raise ConfigurationError(f"rmia_scores: expected gamma ≥ 1 and 0 ≤ a ≤ 1, saw {gamma!r} and {a!r}")
    x = _ratios(target, references, a=a, what="target")
    z = _ratios(population, population_references, a=a, what="population")
    # Sorted once, so that n·m ratios need no n·m memory: LR ≥ γ where p(z|θ)/p(z) ≤ p(x|θ)/p(x)/γ.
    found: Floats = np.searchsorted(np.sort(z), x / gamma, side="right") / len(z)
    return found


def _ratios(values: ArrayLike | Tensor, references: ArrayLike | Tensor, *, a: float, what: str) -> Floats:
    p = floats(values, what=what, dimensions=1)
    out = floats(references, what=f"references of {what}", dimensions=2)
    if not 1 <= len(out) <= MOST:
        raise ConfigurationError(f"rmia_scores: expected 1 to {MOST} reference models, saw {len(out)}")
    if out.shape[1] != len(p):
        raise MismatchError(f"rmia_scores: expected references for {len(p)} samples of {what}, saw {out.shape[1]}")
    if min(p.min(), out.min()) < 0 or max(p.max(), out.max()) > 1:
        raise MismatchError(f"rmia_scores: expected probabilities of {what}, saw numbers outside 0 … 1")
    prior = ((1 + a) * out.mean(axis=0) + (1 - a)) / 2
    found: Floats = p / np.maximum(prior, _TINY)
    return found
