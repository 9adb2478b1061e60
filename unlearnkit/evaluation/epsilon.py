"""The ε-score of the NeurIPS 2023 competition: how well retrained and unlearned models can be told apart."""

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from unlearnkit.evaluation.arrays import Floats, floats
from unlearnkit.utils.errors import ConfigurationError, MismatchError

BIN = 0.5
FLOOR = 1e-3
"""The smallest standard deviation of a fitted normal distribution, logit units."""


def epsilon_scores(retrained: ArrayLike | Tensor, unlearned: ArrayLike | Tensor, *, delta: float = 1e-5) -> Floats:
    """Return ε̂ = max over attacks of max(ln((1 − δ − FPR)/FNR), ln((1 − δ − FNR)/FPR)) of each sample.

    Each attack guesses from one number of one model whether it was retrained or unlearned: by one threshold on that
    number from either side, or by the likelihood ratio of two normal distributions fitted to it (two thresholds). As in
    the competition, an attack without any error gives ∞, and one with errors of one kind only is left out. The number
    is an estimate on the models that the attack was fitted to: with N models of each kind it cannot exceed ln N without
    being ∞.

    Source: Triantafillou et al. 2024 (Are we making progress in unlearning? Findings from the first NeurIPS unlearning
    competition), and the competition's evaluation; the inequality is Kairouz, Oh and Viswanath 2015, theorem 2.1.

    Args:
        retrained: One number per model and sample, shape (models, n), as `unlearnkit.evaluation.features.margins`.
        unlearned: Likewise.
        delta: δ of (ε, δ)-unlearning, 0 … 1.

    Returns:
        Shape (n,), 0 … ∞; 0 where no attack beats guessing.

    Raises:
        ConfigurationError: δ is no probability.
        MismatchError: The samples differ in number, or there are fewer than two models of a kind.

    Example:
        >>> models = [[0.0], [1.0], [2.0], [3.0]]
        >>> epsilon_scores(models, models)
        array([0.])
        >>> epsilon_scores(models, [[10.0], [11.0], [12.0], [13.0]])
        array([inf])
    """
    if not 0 <= delta < 1:
        raise ConfigurationError(f"epsilon_scores: expected 0 ≤ delta < 1, saw {delta!r}")
    r, u = floats(retrained, what="retrained", dimensions=2), floats(unlearned, what="unlearned", dimensions=2)
    if r.shape[1] != u.shape[1] or min(len(r), len(u)) < 2:
        raise MismatchError(f"epsilon_scores: expected at least two models of each kind, saw {r.shape} and {u.shape}")
    return np.array([_epsilon_of_one(r[:, i], u[:, i], delta) for i in range(r.shape[1])])


def forgetting_quality(epsilons: ArrayLike | Tensor) -> float:
    """Return F = mean over samples of H(ε̂), H = 2/2ⁿ, n the number of ε̂'s bin of width ½, the first being 1.

    Source: Triantafillou et al. 2024, with the competition's 13 bins: 6 and more is the last one.

    Args:
        epsilons: See `epsilon_scores`; infinity is allowed.

    Returns:
        2⁻¹² … 1; 1 where all ε̂ < ½.

    Example:
        >>> forgetting_quality([0.1, 0.7])  # (1 + ½)/2
        0.75
    """
    values = floats(np.minimum(np.asarray(epsilons, dtype=np.float64), 6.0), what="epsilons", dimensions=1)
    return float((2.0 / 2.0 ** (1 + np.floor(values / BIN))).mean())


def _epsilon_of_one(retrained: Floats, unlearned: Floats, delta: float) -> float:
    from scipy.stats import norm  # noqa: PLC0415 - it takes seconds to import

    values = np.concatenate([retrained, unlearned])
    truth = np.repeat([0, 1], [len(retrained), len(unlearned)])
    fits = [norm(part.mean(), max(part.std(ddof=1), FLOOR)) for part in (retrained, unlearned)]
    ratio = fits[1].logpdf(values) - fits[0].logpdf(values)
    return max(_best(truth, score, delta) for score in (values, -values, ratio))


def _best(truth: np.ndarray, score: Floats, delta: float) -> float:
    from sklearn.metrics import roc_curve  # noqa: PLC0415 - it takes seconds to import

    fpr, tpr, _ = roc_curve(truth, score, drop_intermediate=False)
    fnr = 1 - tpr
    # An error rate is a whole number of models: what is smaller is rounding.
    fpr, fnr = (np.where(rate < 0.5 / len(truth), 0.0, rate) for rate in (fpr, fnr))
    if ((fpr == 0) & (fnr == 0)).any():
        return float("inf")
    both = (fpr > 0) & (fnr > 0)
    gains = [(1 - delta - a[both]) / b[both] for a, b in ((fpr, fnr), (fnr, fpr))]
    return float(np.log(np.maximum(np.concatenate(gains), 1.0)).max(initial=0.0))
