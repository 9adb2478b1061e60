"""RMIA: is a sample more likely under the model than other samples are, both against reference models?"""

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from unlearnkit.evaluation.arrays import Floats, floats
from unlearnkit.utils.errors import ConfigurationError, MismatchError

MOST = 4
"""How many reference models are of use: the attack is made for few."""
_TINY = 1e-30


def rmia_scores(
    target: ArrayLike | Tensor,
    references: ArrayLike | Tensor,
    *,
    population: ArrayLike | Tensor,
    population_references: ArrayLike | Tensor,
    gamma: float = 2.0,
    a: float = 0.3,
) -> Floats:
    """Return the share of population samples z with LR(x, z) = [p(x|θ)/p(x)] / [p(z|θ)/p(z)] ≥ γ, for each sample x.

    p(x|θ) is the model's probability of the label of x, and p(x) = ½·((1 + a)·p_out(x) + 1 − a) is guessed from
    reference models that were not trained on x (the offline attack): p_out is their mean.

    Source: Zarifzadeh, Liu and Shokri 2024 (Low-Cost High-Power Membership Inference Attacks), the likelihood ratio and
    the score of section 3, and the offline approximation of its appendix.

    Args:
        target: p(x|θ) of the samples under attack, shape (n,), 0 … 1.
        references: The same under each reference model, shape (models, n), 1 to 4 models.
        population: p(z|θ) of samples of the same kind that nobody was trained on, shape (m,).
        population_references: Shape (models, m).
        gamma: γ ≥ 1: how much more likely x must be.
        a: 0 … 1: how much more the model knows of its members than the references do; 1 is "no more".

    Returns:
        Shape (n,), 0 … 1; higher means "member". A sample's score does not depend on the others under attack.

    Raises:
        ConfigurationError: γ or a is out of range, or the number of models is.
        MismatchError: Shapes that do not fit, or numbers that are no probabilities.

    Example:
        >>> rmia_scores([0.9, 0.2], [[0.3, 0.2]], population=[0.3, 0.5], population_references=[[0.3, 0.5]], a=1.0)
        array([1., 0.])
    """
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
