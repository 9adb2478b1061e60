"""Membership attacks on the forget set: the contract of such metrics, and three with one classifier for all samples."""

import abc
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, final

import attrs
import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from unlearnkit.evaluation.arrays import Floats, floats
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import InapplicableError, ModelOutputs, Outputs, Values, for_each_model
from unlearnkit.evaluation.per_sample import entropies
from unlearnkit.utils.errors import ConfigurationError, nearest
from unlearnkit.utils.options import option

Samples = Outputs
"""What the model under attack predicts for some samples: ``Samples(logits=…, labels=…)``."""
FEW = 0.01
"""The false-positive rate at which true positives are counted."""
_COST = "one pass of each model over four splits, and one small fit for each model"
_TRAITS = MetricTraits(
    low=0.0,
    high=1.0,
    unit="fraction",
    source="Foster et al. 2024; Salem et al. 2019",
    cost=_COST,
    trust="one threshold for all samples: finds less than an attack with models of its own",
)


class MembershipAttack(Metric):
    """Attacks the model, the original and each retrained model: ``"AUC"`` and ``"TPR at 1 % FPR"``; write `scores`."""

    @abc.abstractmethod
    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        """Score forgotten samples and unseen samples of the same kind; higher means "member".

        Args:
            outputs: Of all models on all splits.
            model: The model under attack.

        Returns:
            Both, in this order, each of shape (samples,).
        """

    @final
    def measure(self, inputs: EvaluationInputs) -> Values:
        """Attack each model once; see `unlearnkit.Metric.measure`."""
        outputs = ModelOutputs(inputs)

        @cache  # each model is attacked once for both numbers
        def attack(model: nn.Module) -> AttackSuccess:
            return attack_success(*self.scores(outputs, model))

        def tpr(model: nn.Module) -> float:
            found = attack(model)
            if found.tpr is None:
                raise InapplicableError(found.reason)
            return found.tpr

        auc = for_each_model(outputs, "AUC", lambda model: attack(model).auc)
        return {**auc, **for_each_model(outputs, "TPR at 1 % FPR", tpr)}


@final
@attrs.frozen(kw_only=True)
class EntropyAttack(MembershipAttack):
    """Logistic regression on the entropy of the outputs: forgotten against unseen samples of the same kind.

    The attacker learns from the retain set (members) and from retained test data (non-members), and is judged on the
    forget set against unseen samples of the same kind: ``"AUC"`` and ``"TPR at 1 % FPR"``, for the model, the original
    and the mean of the retrained models. See `population_attack`.
    """

    name: ClassVar[str] = "mia-entropy"
    traits: ClassVar[MetricTraits] = _TRAITS

    seed: int = option(0, at_least=0, doc="of the solver and of the halves of unseen data")

    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        """Attack; see `MembershipAttack.scores`."""
        return _population_scores(outputs, model, kind="entropy", seed=self.seed)


@final
@attrs.frozen(kw_only=True)
class LossAttack(MembershipAttack):
    """Logistic regression on the loss of the label: forgotten against unseen samples of the same kind.

    See `EntropyAttack` for what is compared.
    """

    name: ClassVar[str] = "mia-loss"
    traits: ClassVar[MetricTraits] = attrs.evolve(_TRAITS, source="Yeom et al. 2018")

    seed: int = option(0, at_least=0, doc="of the solver and of the halves of unseen data")

    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        """Attack; see `MembershipAttack.scores`."""
        return _population_scores(outputs, model, kind="loss", seed=self.seed)


@final
@attrs.frozen(kw_only=True)
class ConfidenceAttack(MembershipAttack):
    """An SVC on the probability of the label: forgotten against unseen samples of the same kind; a weak attack.

    See `EntropyAttack` for what is compared.
    """

    name: ClassVar[str] = "mia-confidence"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        _TRAITS,
        source="Liu et al. 2024 (sparsity), MIA-efficacy's classifier",
        cost=f"{_COST}; the SVC grows with the square of the samples",
        trust="weak: near 0.5 says little",
    )

    seed: int = option(0, at_least=0, doc="of the solver and of the halves of unseen data")
    most: int = option(2000, at_least=10, doc="samples of each side to learn from, drawn with the seed")

    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        """Attack; see `MembershipAttack.scores`."""
        return _population_scores(outputs, model, kind="confidence", seed=self.seed, most=self.most)


def unseen_halves(outputs: ModelOutputs, model: nn.Module, seed: int) -> tuple[Outputs, Outputs]:
    """Return samples that no model was trained on: those to learn from, and those of the forgotten kind."""
    unseen = outputs.of(model, "retain-test")
    if "forget-test" in outputs.splits:
        return unseen, outputs.of(model, "forget-test")
    alone = set(outputs.of(model, "forget-train").labels) - set(outputs.of(model, "retain-train").labels)
    if alone:
        raise InapplicableError(
            f"classes {sorted(map(int, alone))} were forgotten whole and there are no unseen samples of them: any "
            "other non-members differ by their class, which is no membership"
        )
    if len(unseen) < 2:
        raise InapplicableError("at least two unseen samples are needed, one to learn from and one to judge on")
    rows = np.random.default_rng(seed).permutation(len(unseen))
    half = len(rows) // 2
    return unseen.subset(rows[:half]), unseen.subset(rows[half:])


def _population_scores(
    outputs: ModelOutputs, model: nn.Module, *, kind: str, seed: int, most: int | None = None
) -> tuple[Floats, Floats]:
    known, judged = unseen_halves(outputs, model, seed)
    members = outputs.of(model, "retain-train")
    if most is not None:
        known, members = known.sample(most, seed=seed), members.sample(most, seed=seed)
    attack = population_attack(kind, members=members, nonmembers=known, seed=seed)
    return attack.scores(outputs.of(model, "forget-train")), attack.scores(judged)


@final
@attrs.frozen(kw_only=True)
class AttackSuccess:
    """How well scores separate members from non-members.

    Attributes:
        auc: Area under the ROC curve, 0 … 1; ½ is guessing, and below ½ is a signal too: members look less familiar
            than what was never seen.
        tpr: Largest true-positive rate at a false-positive rate of at most 1 %, 0 … 1; None where there are fewer than
            100 non-members, of whom one would be more than 1 %.
        reason: Why ``tpr`` is None, or "".
    """

    auc: float
    tpr: float | None
    reason: str = ""


def attack_success(members: ArrayLike | Tensor, nonmembers: ArrayLike | Tensor) -> AttackSuccess:
    """Return how well scores separate members from non-members.

    Source: Carlini et al. 2022 (Membership Inference Attacks From First Principles), section III, for the rate at few
    false positives. Computed by scikit-learn.

    Args:
        members: Scores of samples that were trained on (or were forgotten), shape (n,); higher means "member".
        nonmembers: Scores of samples that never were, shape (m,).

    Example:
        >>> attack_success([3.0, 2.0], [1.0, 2.0]).auc  # of four pairs three and a half are right
        0.875
    """
    from sklearn.metrics import roc_auc_score, roc_curve  # noqa: PLC0415 - it takes seconds to import

    m, n = floats(members, what="members", dimensions=1), floats(nonmembers, what="nonmembers", dimensions=1)
    truth, scores = np.repeat([1, 0], [len(m), len(n)]), np.concatenate([m, n])
    auc = float(roc_auc_score(truth, scores))
    if len(n) * FEW < 1:
        why = f"a false-positive rate of 1 % needs at least 100 non-members, saw {len(n)}"
        return AttackSuccess(auc=auc, tpr=None, reason=why)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return AttackSuccess(auc=auc, tpr=float(tpr[fpr <= FEW].max()))


@final
@attrs.frozen(kw_only=True, eq=False)
class PopulationAttack:
    """A classifier that was trained on known members and known non-members.

    Attributes:
        kind: ``"entropy"``, ``"loss"`` or ``"confidence"``.
        classifier: The fitted scikit-learn classifier.
    """

    kind: str
    classifier: Any

    def scores(self, samples: Samples) -> Floats:
        """Return the decision function of each sample of the same model, shape (n,); higher means "member"."""
        found: Floats = self.classifier.decision_function(_FEATURES[self.kind](samples))
        return found


def population_attack(kind: str, *, members: Samples, nonmembers: Samples, seed: int = 0) -> PopulationAttack:
    """Train an attacker on samples that are known to be members and non-members.

    ``entropy`` and ``loss`` are logistic regressions on one number per sample (entropy as in Foster, Schoepf and
    Brintrup 2024 and their forerunners' code; loss as in Yeom et al. 2018). ``confidence`` is an SVC on the probability
    of the label (as in Liu et al. 2024, Model Sparsity Can Simplify Machine Unlearning); it is weak: a number near ½
    says little. All three are standardised, and both sides weigh the same however many samples they have.

    Non-members are samples that no model was trained on: never retain data, which are members.

    Args:
        kind: Which attack.
        members: Samples that the model was trained on and should still know: the retain set.
        nonmembers: Samples that it was never trained on; not those that the attack is judged on.
        seed: Of scikit-learn's solvers.

    Returns:
        The attacker; give its scores of forgotten and of unseen samples to `attack_success`.

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


_FEATURES: dict[str, Callable[[Samples], Floats]] = {
    "entropy": lambda samples: entropies(samples.probabilities)[:, None],
    "loss": lambda samples: samples.losses[:, None],
    "confidence": lambda samples: samples.confidences[:, None],
}
