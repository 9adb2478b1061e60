"""Attacks with one classifier for all samples: logistic regression on entropy or loss, an SVC on confidences."""

from collections.abc import Callable
from typing import Any, final

import attrs
import numpy as np

from unlearnkit.evaluation.arrays import Floats, class_labels, floats
from unlearnkit.evaluation.features import entropies, label_losses, softmax_of
from unlearnkit.utils.errors import ConfigurationError, nearest


def _logits(values: Any) -> Floats:
    return floats(values, what="logits", dimensions=2)


@final
@attrs.frozen(kw_only=True, eq=False)
class Samples:
    """What the model under attack says about some samples.

    Attributes:
        logits: Shape (n, classes).
        labels: Shape (n,).
    """

    logits: Floats = attrs.field(converter=_logits)
    labels: np.ndarray

    def __attrs_post_init__(self) -> None:
        class_labels(self.labels, samples=len(self.logits), classes=self.logits.shape[1])

    def __len__(self) -> int:
        return len(self.logits)


@final
@attrs.frozen(kw_only=True, eq=False)
class PopulationAttack:
    """An attacker that was trained on known members and known non-members.

    Attributes:
        kind: ``"entropy"``, ``"loss"`` or ``"confidence"``.
        classifier: The fitted scikit-learn classifier.
    """

    kind: str
    classifier: Any

    def scores(self, samples: Samples) -> Floats:
        """Say how much each sample looks like a member; it does not depend on the other samples.

        Args:
            samples: Of the same model.

        Returns:
            Shape (n,): the classifier's decision function, higher means "member".
        """
        found: Floats = self.classifier.decision_function(_FEATURES[self.kind](samples))
        return found


def population_attack(kind: str, *, members: Samples, nonmembers: Samples, seed: int = 0) -> PopulationAttack:
    """Train an attacker on samples that are known to be members and non-members.

    ``entropy`` and ``loss`` are logistic regressions on one number per sample (entropy as in Foster, Schoepf and
    Brintrup 2024 and their forerunners' code; loss as in Yeom et al. 2018). ``confidence`` is an SVC on the probability
    of the label (as in Liu et al. 2024, Model Sparsity Can Simplify Machine Unlearning); it is weak: a number near ½
    says little. All three are standardised, and both sides weigh the same however many samples they have.

    Non-members are samples that no model was trained on. Retain data are members: they cannot stand in for them.

    Args:
        kind: Which attack.
        members: Samples that the model was trained on and still is to know: the retain set.
        nonmembers: Samples that it was never trained on; not those that the attack is judged by.
        seed: Of scikit-learn's solvers.

    Returns:
        The attacker; hand its scores of forgotten and of unseen samples to `attack_success`.

    Raises:
        ConfigurationError: There is no such attack.

    Example:
        >>> known, unseen = (Samples(logits=[[z, 0.0]] * 3, labels=np.zeros(3, int)) for z in (5.0, 1.0))
        >>> attack = population_attack("loss", members=known, nonmembers=unseen)
        >>> bool(attack.scores(known)[0] > 0 > attack.scores(unseen)[0])
        True
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - it takes seconds to import
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415
    from sklearn.svm import SVC  # noqa: PLC0415

    if kind not in _FEATURES:
        raise ConfigurationError(f"no membership attack is called {kind!r}{nearest(kind, _FEATURES)}")
    features = np.concatenate([_FEATURES[kind](members), _FEATURES[kind](nonmembers)])
    truth = np.repeat([1, 0], [len(members), len(nonmembers)])
    model = (
        SVC(class_weight="balanced", random_state=seed)
        if kind == "confidence"
        else LogisticRegression(class_weight="balanced", random_state=seed)
    )
    return PopulationAttack(kind=kind, classifier=make_pipeline(StandardScaler(), model).fit(features, truth))


def _entropy(samples: Samples) -> Floats:
    return entropies(softmax_of(samples.logits))[:, None]


def _loss(samples: Samples) -> Floats:
    return label_losses(samples.logits, samples.labels)[:, None]


def _confidence(samples: Samples) -> Floats:
    return np.exp(-_loss(samples))


_FEATURES: dict[str, Callable[[Samples], Floats]] = {"entropy": _entropy, "loss": _loss, "confidence": _confidence}
