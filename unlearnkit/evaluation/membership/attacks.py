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

FEW = 0.01  # the false-positive rate at which true positives are counted
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
    forget set against unseen samples of the same kind.
    """

    name: ClassVar[str] = "mia-entropy"
    traits: ClassVar[MetricTraits] = _TRAITS

    seed: int = option(0, at_least=0, doc="of the solver and of the halves of unseen data")

    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        return _population_scores(outputs, model, kind="entropy", seed=self.seed)


@final
@attrs.frozen(kw_only=True)
class LossAttack(MembershipAttack):
    """Logistic regression on the loss of the label: forgotten against unseen samples of the same kind."""

    name: ClassVar[str] = "mia-loss"
    traits: ClassVar[MetricTraits] = attrs.evolve(_TRAITS, source="Yeom et al. 2018")

    seed: int = option(0, at_least=0, doc="of the solver and of the halves of unseen data")

    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        return _population_scores(outputs, model, kind="loss", seed=self.seed)


@final
@attrs.frozen(kw_only=True)
class ConfidenceAttack(MembershipAttack):
    """An SVC on the probability of the label: forgotten against unseen samples of the same kind; a weak attack."""

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
        return _population_scores(outputs, model, kind="confidence", seed=self.seed, most=self.most)


def unseen_halves(outputs: ModelOutputs, model: nn.Module, seed: int) -> tuple[Outputs, Outputs]:
    """Samples that no model was trained on: those to learn from, and those of the same kind as the forget set."""
    unseen = outputs.of(model, "retain-test")
    if "forget-test" in outputs.splits:
        return unseen, outputs.of(model, "forget-test")
    alone = set(outputs.of(model, "forget-train").labels) - set(outputs.of(model, "retain-train").labels)
    if alone:
        raise InapplicableError(
            f"classes {sorted(map(int, alone))} were forgotten completely and there are no unseen samples of them: "
            "other non-members would differ by their class, not by membership"
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
    """How well scores separate members from non-members; ``reason`` says why there is no true-positive rate."""

    auc: float
    tpr: float | None
    reason: str = ""


def attack_success(members: ArrayLike | Tensor, nonmembers: ArrayLike | Tensor) -> AttackSuccess:
    """AUC, and the largest true-positive rate at 1 % false positives (Carlini et al. 2022, section III)."""
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
    """A scikit-learn classifier that was trained on known members and known non-members."""

    kind: str
    classifier: Any

    def scores(self, samples: Outputs) -> Floats:
        """The decision function of each sample of the same model; higher means "member"."""
        found: Floats = self.classifier.decision_function(_FEATURES[self.kind](samples))
        return found


def population_attack(kind: str, *, members: Outputs, nonmembers: Outputs, seed: int = 0) -> PopulationAttack:
    """Train an attacker on one number per sample, standardised, with both sides weighing the same."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - it takes seconds to import
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415
    from sklearn.svm import SVC  # noqa: PLC0415

    if kind not in _FEATURES:
        raise ConfigurationError(f"no membership attack is called {kind!r}{nearest(kind, _FEATURES)}")
    features = np.concatenate([_FEATURES[kind](members), _FEATURES[kind](nonmembers)])
    truth = np.repeat([1, 0], [len(members), len(nonmembers)])
    classifier = SVC if kind == "confidence" else LogisticRegression
    fitted = make_pipeline(StandardScaler(), classifier(class_weight="balanced", random_state=seed))
    return PopulationAttack(kind=kind, classifier=fitted.fit(features, truth))


_FEATURES: dict[str, Callable[[Outputs], Floats]] = {
    "entropy": lambda samples: entropies(samples.probabilities)[:, None],
    "loss": lambda samples: samples.losses[:, None],
    "confidence": lambda samples: samples.confidences[:, None],
}
