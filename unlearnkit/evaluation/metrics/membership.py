"""Membership attacks on the forget set, beside the same attack on the original and on retrained models."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import ClassVar, final

import attrs
import numpy as np
from torch import nn

from unlearnkit.evaluation.arrays import Floats
from unlearnkit.evaluation.membership import AttackSuccess, Samples, attack_success, population_attack
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.metrics.model_outputs import ModelOutputs, Values, answer
from unlearnkit.evaluation.outputs import InapplicableError, Outputs, mean
from unlearnkit.utils.options import option

_COST = "one pass of each model over four splits, and one small fit for each model"


@final
@attrs.frozen(kw_only=True)
class EntropyAttack(Metric):
    """Logistic regression on the entropy of the outputs: forgotten against unseen samples of the same kind.

    The attacker learns from the retain set (members) and from retained test data (non-members), and is judged on the
    forget set against unseen samples of the same kind: ``"AUC"`` and ``"TPR at 1 % FPR"``, for the model, the original
    and the mean of the retrained models. See `unlearnkit.evaluation.membership.population_attack`.
    """

    name: ClassVar[str] = "mia-entropy"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        unit="fraction",
        source="Foster et al. 2024; Salem et al. 2019",
        cost=_COST,
        trust="one threshold for all samples: finds less than an attack with models of its own",
    )

    seed: int = option(0, at_least=0, doc="of the solver and of the halves of unseen data")

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Attack; see `unlearnkit.Metric.measure`."""
        return attacked(inputs, partial(_population, kind="entropy", seed=self.seed))


@final
@attrs.frozen(kw_only=True)
class LossAttack(Metric):
    """Logistic regression on the loss of the label: forgotten against unseen samples of the same kind.

    See `EntropyAttack` for what is compared.
    """

    name: ClassVar[str] = "mia-loss"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        unit="fraction",
        source="Yeom et al. 2018",
        cost=_COST,
        trust="one threshold for all samples: finds less than an attack with models of its own",
    )

    seed: int = option(0, at_least=0, doc="of the solver and of the halves of unseen data")

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Attack; see `unlearnkit.Metric.measure`."""
        return attacked(inputs, partial(_population, kind="loss", seed=self.seed))


@final
@attrs.frozen(kw_only=True)
class ConfidenceAttack(Metric):
    """An SVC on the probability of the label: forgotten against unseen samples of the same kind; a weak attack.

    See `EntropyAttack` for what is compared.
    """

    name: ClassVar[str] = "mia-confidence"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        unit="fraction",
        source="Liu et al. 2024 (sparsity), MIA-efficacy's classifier",
        cost=f"{_COST}; the SVC grows with the square of the samples",
        trust="weak: near 0.5 says little",
    )

    seed: int = option(0, at_least=0, doc="of the solver and of the halves of unseen data")
    most: int = option(2000, at_least=10, doc="samples of each side to learn from; the first of a seeded permutation")

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Attack; see `unlearnkit.Metric.measure`."""
        return attacked(inputs, partial(_population, kind="confidence", seed=self.seed, most=self.most))


Attack = Callable[[ModelOutputs, nn.Module], AttackSuccess]


def attacked(inputs: EvaluationInputs, attack: Attack) -> Values:
    """Run an attack on the model, on the original and on each retrained model."""
    sheet = ModelOutputs(inputs)
    judge = cache(partial(attack, sheet))  # each model is attacked once for both numbers
    values: Values = {}
    for prefix, model in sheet.named.items():
        values[f"{prefix}AUC"] = answer(partial(_auc, (model,), judge))
        values[f"{prefix}TPR at 1 % FPR"] = answer(partial(_tpr, (model,), judge))
    values["retrained AUC"] = answer(lambda: _auc(sheet.retrained(), judge))
    values["retrained TPR at 1 % FPR"] = answer(lambda: _tpr(sheet.retrained(), judge))
    return values


def unseen_halves(sheet: ModelOutputs, model: nn.Module, seed: int) -> tuple[Outputs, Outputs]:
    """Return samples that no model was trained on: those to learn from, and those of the forgotten kind."""
    unseen = sheet.of(model, "retain-test")
    if "forget-test" in sheet.splits:
        return unseen, sheet.of(model, "forget-test")
    alone = set(sheet.of(model, "forget-train").labels) - set(sheet.of(model, "retain-train").labels)
    if alone:
        raise InapplicableError(
            f"classes {sorted(map(int, alone))} were forgotten whole and there are no unseen samples of them: any "
            "other non-members differ by their class, which is no membership"
        )
    if len(unseen.labels) < 2:
        raise InapplicableError("at least two unseen samples are needed, one to learn from and one to judge by")
    rows = np.random.default_rng(seed).permutation(len(unseen.labels))
    half = len(rows) // 2
    return unseen.subset(rows[:half]), unseen.subset(rows[half:])


def _population(sheet: ModelOutputs, model: nn.Module, *, kind: str, seed: int, most: int = 0) -> AttackSuccess:
    return attack_success(*population_scores(sheet, model, kind=kind, seed=seed, most=most))


def population_scores(
    sheet: ModelOutputs, model: nn.Module, *, kind: str, seed: int, most: int = 0
) -> tuple[Floats, Floats]:
    """Train an attacker on retain data and unseen data, and let it score what was forgotten."""
    known, judged = unseen_halves(sheet, model, seed)
    members = sheet.of(model, "retain-train")
    attack = population_attack(
        kind, members=_samples(members, most, seed), nonmembers=_samples(known, most, seed), seed=seed
    )
    forgotten = sheet.of(model, "forget-train")
    return attack.scores(_samples(forgotten)), attack.scores(_samples(judged))


def _samples(outputs: Outputs, most: int = 0, seed: int = 0) -> Samples:
    if most and len(outputs.labels) > most:
        outputs = outputs.subset(np.random.default_rng(seed).permutation(len(outputs.labels))[:most])
    return Samples(logits=outputs.logits, labels=outputs.labels)


def _auc(models: tuple[nn.Module, ...], judge: Callable[[nn.Module], AttackSuccess]) -> float:
    return mean(judge(model).auc for model in models)


def _tpr(models: tuple[nn.Module, ...], judge: Callable[[nn.Module], AttackSuccess]) -> float:
    rates = []
    for model in models:
        found = judge(model)
        if found.tpr is None:
            raise InapplicableError(found.reason)
        rates.append(found.tpr)
    return mean(rates)
