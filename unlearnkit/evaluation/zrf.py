"""Zero-retrain forgetting: how random an unlearned model's predictions on the forget set are."""

from numpy.typing import ArrayLike
from torch import Tensor

from unlearnkit.evaluation.divergence import LN2, jensen_shannon


def zero_retrain_forgetting(p: ArrayLike | Tensor, incompetent: ArrayLike | Tensor) -> float:
    """Return ZRF = 1 − mean JS(M(x), T(x)), M the unlearned model, T an untrained one, x in the forget set.

    A proxy that needs no retrained model, and no more: a retrained model does not predict at random, it generalises,
    so a ZRF above the retrained model's is no better. JS is in bits here, so that ZRF lies between 0 and 1 as in the
    paper; in nats it could not fall below 1 − ln 2.

    Source: Chundawat, Tarun, Mandal and Kankanhalli 2023 (Can Bad Teaching Induce Forgetting?), "ZRF metric".

    Args:
        p: The unlearned model's class probabilities, shape (n, classes).
        incompetent: Those of an untrained model, for the same samples.

    Returns:
        0 … 1; 1 where the model predicts as if it had never been trained.

    Example:
        >>> zero_retrain_forgetting([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]])
        0.5
    """
    return float(1.0 - jensen_shannon(p, incompetent).mean() / LN2)
