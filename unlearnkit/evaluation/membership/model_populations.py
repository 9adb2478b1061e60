"""Measures that need a population of unlearned and of retrained models: U-LiRA, the ε-score and KLOM.

Each takes one number per model and sample, shape (models, n), usually `unlearnkit.evaluation.per_sample.margins`.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr
from torch import Tensor

from unlearnkit.evaluation.membership.attacks import AttackSuccess, attack_success
from unlearnkit.evaluation.per_sample import Floats, floats
from unlearnkit.utils.errors import ConfigurationError, MismatchError

FLOOR = 1e-3  # the smallest standard deviation of a fitted normal distribution, logit units
EPSILON_BIN = 0.5
BINS, CLIP, SMOOTHING = 20, 100.0, 1e-5  # of KLOM


def ulira(unlearned: ArrayLike | Tensor, retrained: ArrayLike | Tensor) -> AttackSuccess:
    """Judge Λ = ln N(φ; μ_u, σ_u) − ln N(φ; μ_r, σ_r) on φ of unlearned against φ of retrained models.

    Both have shape (k, n): margins φ of k ≥ 3 models that unlearned the n samples, and of k that were never trained on
    them. When the k-th model of either kind is judged, μ and σ of a sample are fitted to all others. AUC and
    true-positive rate are over all k·n pairs; "member" means unlearned.

    Source: Hayes et al. 2024 (Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy),
    "U-LiRA". Leaving out pair k is ours: the paper trains further models to judge.

    Examples:
        >>> phi = np.random.default_rng(0).normal(size=(8, 20))
        >>> ulira(phi, phi).auc, ulira(phi + 5, phi).auc > 0.95
        (0.5, True)
    """
    u, r = floats(unlearned, what="unlearned", dimensions=2), floats(retrained, what="retrained", dimensions=2)
    if u.shape != r.shape or len(u) < 3:
        raise MismatchError(f"ulira: expected two arrays of one shape (at least 3, n), saw {u.shape} and {r.shape}")
    left_out = [(np.delete(u, k, axis=0), np.delete(r, k, axis=0)) for k in range(len(u))]
    ratios = [[_log_ratios(x, *others) for x, others in zip(models, left_out, strict=True)] for models in (u, r)]
    return attack_success(*map(np.concatenate, ratios))


def _log_ratios(values: Floats, unlearned: Floats, retrained: Floats) -> Floats:
    """Log-likelihood ratios of values under normal distributions fitted to unlearned and to retrained models."""
    from scipy.stats import norm  # noqa: PLC0415 - it takes seconds to import

    fits = [norm(x.mean(axis=0), np.maximum(x.std(axis=0, ddof=1), FLOOR)) for x in (unlearned, retrained)]
    return np.asarray(fits[0].logpdf(values) - fits[1].logpdf(values))


def epsilon_scores(retrained: ArrayLike | Tensor, unlearned: ArrayLike | Tensor, *, delta: float = 1e-5) -> Floats:
    """Return ε̂ = max over attacks of max(ln((1 − δ − FPR)/FNR), ln((1 − δ − FNR)/FPR)) of each sample.

    Attacks are thresholds from either side, and the likelihood ratio of two fitted normal distributions. One without
    any error gives ∞; one with errors of one kind only is left out. Both have shape (models ≥ 2, n), the result (n,):
    0 where no attack beats guessing, and at most ln N, or ∞, with N models of each kind. δ is 0 … 1.

    Source: Triantafillou et al. 2024 (Are we making progress in unlearning?); the inequality is Kairouz, Oh and
    Viswanath 2015, theorem 2.1.

    Examples:
        >>> models = [[0.0], [1.0], [2.0], [3.0]]
        >>> epsilon_scores(models, models), epsilon_scores(models, [[10.0], [11.0], [12.0], [13.0]])
        (array([0.]), array([inf]))
    """
    if not 0 <= delta < 1:
        raise ConfigurationError(f"epsilon_scores: expected 0 ≤ delta < 1, saw {delta!r}")
    r, u = floats(retrained, what="retrained", dimensions=2), floats(unlearned, what="unlearned", dimensions=2)
    if r.shape[1] != u.shape[1] or min(len(r), len(u)) < 2:
        raise MismatchError(f"epsilon_scores: expected at least two models of each kind, saw {r.shape} and {u.shape}")
    return np.array([_epsilon_of_one(r[:, i], u[:, i], delta) for i in range(r.shape[1])])


def forgetting_quality(epsilons: ArrayLike | Tensor) -> float:
    """Return F = mean over samples of H(ε̂), H = 2/2ⁿ, n the number of ε̂'s bin of width ½, the first being 1.

    F of the `epsilon_scores` is 2⁻¹² … 1, and 1 where all ε̂ < ½.

    Source: Triantafillou et al. 2024, with the competition's 13 bins: 6 and more is the last one.

    Examples:
        >>> forgetting_quality([0.1, 0.7])  # (1 + ½)/2
        0.75
    """
    values = floats(np.minimum(np.asarray(epsilons, dtype=np.float64), 6.0), what="epsilons", dimensions=1)
    return float((2.0 / 2.0 ** (1 + np.floor(values / EPSILON_BIN))).mean())


def _epsilon_of_one(retrained: Floats, unlearned: Floats, delta: float) -> float:
    values = np.concatenate([retrained, unlearned])
    truth = np.repeat([0, 1], [len(retrained), len(unlearned)])
    scores = (values, -values, _log_ratios(values, unlearned, retrained))
    return max(_best(truth, score, delta) for score in scores)


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


def klom(retrained: ArrayLike | Tensor, unlearned: ArrayLike | Tensor) -> Floats:
    """Return KL(h(φ_r) ‖ h(φ_u)) of each sample, h a histogram over models of its margins φ.

    Margins are clipped to ±100 and counted in 20 equal bins from the smallest to the largest of the sample; 10⁻⁵ is
    added to every bin. Both have shape (models, n), the result (n,), nats: 0 where both histograms are equal, at most
    about 12. The authors use 100 models of each kind; with a handful, it can only rank methods.

    Source: Georgiev et al. 2024 (Attribute-to-Delete: Machine Unlearning via Datamodel Matching), appendix E.1.

    Examples:
        >>> klom([[0.0, 1.0], [1.0, 2.0]], [[1.0, 5.0], [0.0, 6.0]]).round(1)
        array([ 0. , 10.8])
    """
    r = floats(retrained, what="retrained", dimensions=2).clip(-CLIP, CLIP)
    u = floats(unlearned, what="unlearned", dimensions=2).clip(-CLIP, CLIP)
    if r.shape[1] != u.shape[1]:
        raise MismatchError(f"klom: expected the same samples twice, saw {r.shape[1]} and {u.shape[1]}")
    return np.array([_klom_of_one(r[:, i], u[:, i]) for i in range(r.shape[1])])


def _klom_of_one(retrained: Floats, unlearned: Floats) -> float:
    both = np.concatenate([retrained, unlearned])
    edges = np.histogram_bin_edges(both, bins=BINS)
    p, q = (np.histogram(values, bins=edges)[0] / len(values) + SMOOTHING for values in (retrained, unlearned))
    return float(max(rel_entr(p / p.sum(), q / q.sum()).sum(), 0.0))
