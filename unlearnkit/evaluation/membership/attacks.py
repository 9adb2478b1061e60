"""Membership attacks on the forget set: their contract, three with one classifier for all samples, and RMIA."""

import abc
from collections.abc import Callable
from functools import cache, partial
from typing import ClassVar, final

import attrs
import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from unlearnkit.data.splits import matching_rows
from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import InapplicableError, ModelOutputs, Outputs, Values, some_rows
from unlearnkit.evaluation.per_sample import Floats, entropies, floats
from unlearnkit.utils.options import option

FEW = 0.01  # the false-positive rate at which true positives are counted
MOST = 4  # reference models of RMIA: the attack is made for few
_TINY = 1e-30
_TRAITS = attrs.evolve(
    FRACTION,
    source="Foster et al. 2024; Salem et al. 2019",
    cost="one pass of each model over four splits, and one small fit for each model",
    trust="one threshold for all samples: finds less than an attack with models of its own",
)


@attrs.frozen(kw_only=True)
class MembershipAttack(Metric):
    """Attacks the model, the original and each retrained model: ``"AUC"`` and ``"TPR at 1 % FPR"``; write `scores`."""

    seed: int = option(0, at_least=0, doc="of the halves of unseen data, and of the solver")

    @abc.abstractmethod
    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        """Attack a model: scores of the forgotten, and of unseen samples of the same kind; higher means "member"."""

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

        auc = outputs.for_each_model("AUC", lambda model: attack(model).auc)
        return {**auc, **outputs.for_each_model("TPR at 1 % FPR", tpr)}


@final
@attrs.frozen(kw_only=True)
class EntropyAttack(MembershipAttack):
    """Logistic regression on the entropy of the outputs: forgotten against unseen samples of the same kind.

    The attacker learns from the retain set (members) and from retained test data (non-members), and is judged on the
    forget set against unseen samples of the same kind.
    """

    name: ClassVar[str] = "mia-entropy"
    traits: ClassVar[MetricTraits] = _TRAITS

    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        return _population_scores(outputs, model, kind="entropy", seed=self.seed)


@final
@attrs.frozen(kw_only=True)
class LossAttack(MembershipAttack):
    """Logistic regression on the loss of the label: forgotten against unseen samples of the same kind."""

    name: ClassVar[str] = "mia-loss"
    traits: ClassVar[MetricTraits] = attrs.evolve(_TRAITS, source="Yeom et al. 2018")

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
        cost=f"{_TRAITS.cost}; the SVC grows with the square of the samples",
        trust="weak: near 0.5 says little",
    )

    most: int = option(2000, at_least=10, doc="samples of each side to learn from, drawn with the seed")

    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        return _population_scores(outputs, model, kind="confidence", seed=self.seed, most=self.most)


@final
@attrs.frozen(kw_only=True)
class RelativeMembership(MembershipAttack):
    """RMIA: forgotten against unseen samples of the same kind, with one to four retrained models as references.

    The population is retained test data. A retrained model under attack is not its own reference.
    """

    name: ClassVar[str] = "rmia"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        _TRAITS,
        source="Zarifzadeh et al. 2024",
        cost="one pass of each model over three splits; one retrained model, two for the retrained models' own value",
        trust="the strongest attack here with few models; a low value is still no proof",
    )

    gamma: float = option(2.0, symbol="γ", at_least=1, doc="how much more likely a member must be")
    a: float = option(0.3, symbol="a", at_least=0, at_most=1, doc="a member's p is taken as a·p_out + 1 − a")

    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        retrained = outputs.retrained()
        if any(known is model for known in retrained):
            retrained = outputs.retrained(at_least=2)
        models = [model, *[known for known in retrained if known is not model][:MOST]]
        halves = [unseen_halves(outputs, each, self.seed) for each in models]
        population, unseen = (np.stack([half.confidences for half in side]) for side in zip(*halves, strict=True))
        forgotten = np.stack([outputs.of(each, "forget-train").confidences for each in models])
        judge = partial(
            rmia_scores, population=population[0], population_references=population[1:], gamma=self.gamma, a=self.a
        )
        return judge(forgotten[0], forgotten[1:]), judge(unseen[0], unseen[1:])


def unseen_halves(outputs: ModelOutputs, model: nn.Module, seed: int) -> tuple[Outputs, Outputs]:
    """Samples that no model was trained on: those to learn from, and those of the same kind as the forget set.

    The same kind is ``forget-test``, else half of ``retain-test``, with each class as often as in the forget set: where
    somebody's samples are of few classes, others would differ by their class, not by membership.
    """
    unseen, same = outputs.of(model, "retain-test"), None
    alone = set(outputs.of(model, "forget-train").labels)
    if "forget-test" in outputs.splits:
        same = outputs.of(model, "forget-test")
        alone -= set(same.labels)
    if alone:  # asked first, because the retain set may be large
        alone -= set(outputs.of(model, "retain-train").labels)
    if alone:
        raise InapplicableError(
            f"classes {sorted(map(int, alone))} were forgotten completely and there are no unseen samples of them: "
            "other non-members would differ by their class, not by membership"
        )
    if same is not None:
        return unseen, same
    if len(unseen) < 2:
        raise InapplicableError("at least two unseen samples are needed, one to learn from and one to judge on")
    rows = np.random.default_rng(seed).permutation(len(unseen))
    half = len(rows) // 2
    judged = rows[half:]
    judged = judged[matching_rows(unseen.labels[judged], outputs.of(model, "forget-train").labels, seed=seed)]
    if not len(judged):
        raise InapplicableError("no unseen sample of the forgotten classes is left to judge on")
    return unseen.subset(rows[:half]), unseen.subset(judged)


def _population_scores(
    outputs: ModelOutputs, model: nn.Module, *, kind: str, seed: int, most: int | None = None
) -> tuple[Floats, Floats]:
    known, judged = unseen_halves(outputs, model, seed)
    members = outputs.of(model, "retain-train")
    if most is not None:
        known, members = (side.subset(some_rows(len(side), most, seed=seed)) for side in (known, members))
    attack = population_attack(kind, members=members, nonmembers=known, seed=seed)
    return attack(outputs.of(model, "forget-train")), attack(judged)


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


def population_attack(
    kind: str, *, members: Outputs, nonmembers: Outputs, seed: int = 0
) -> Callable[[Outputs], Floats]:
    """Fit a classifier to one standardised number per sample, both sides weighing the same; return its decisions."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - it takes seconds to import
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415
    from sklearn.svm import SVC  # noqa: PLC0415

    feature = _FEATURES[kind]
    features = np.concatenate([feature(members), feature(nonmembers)])
    truth = np.repeat([1, 0], [len(members), len(nonmembers)])
    classifier = SVC if kind == "confidence" else LogisticRegression
    fitted = make_pipeline(StandardScaler(), classifier(class_weight="balanced", random_state=seed))
    fitted.fit(features, truth)
    return lambda samples: np.asarray(fitted.decision_function(feature(samples)))


_FEATURES: dict[str, Callable[[Outputs], Floats]] = {
    "entropy": lambda samples: entropies(samples.probabilities)[:, None],
    "loss": lambda samples: samples.losses[:, None],
    "confidence": lambda samples: samples.confidences[:, None],
}


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
    x = _ratios(target, references, a=a, what="target")
    z = _ratios(population, population_references, a=a, what="population")
    # Sorted once, so that n·m ratios need no n·m memory: LR ≥ γ where p(z|θ)/p(z) ≤ p(x|θ)/p(x)/γ.
    return np.asarray(np.searchsorted(np.sort(z), x / gamma, side="right") / len(z))


def _ratios(values: ArrayLike | Tensor, references: ArrayLike | Tensor, *, a: float, what: str) -> Floats:
    p = floats(values, what=what, dimensions=1)
    out = floats(references, what=f"references of {what}", dimensions=2)
    prior = ((1 + a) * out.mean(axis=0) + (1 - a)) / 2
    return np.asarray(p / np.maximum(prior, _TINY))
