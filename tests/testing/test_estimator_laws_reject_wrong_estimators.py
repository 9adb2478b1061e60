"""For each law of estimators: three deliberately wrong ones that it rejects; no other law rejects the first one."""

import random
from collections.abc import Callable

import attrs
import numpy as np
import pytest
import torch

from unlearnkit import EstimatorTraits, Importance, ImportanceEstimator
from unlearnkit.models import trainable
from unlearnkit.testing import LawError, broken_laws, laws_for
from unlearnkit.testing.law import LAWS

FREE = EstimatorTraits(batch_free=True, quadratic=True)


def gradients(model, loss):
    named = trainable(model)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}


class Right(ImportanceEstimator):
    """Squared gradients, one sample at a time."""

    name = "wrong"
    traits = FREE

    def estimate_batch(self, model, batch, *, objective):
        x, y = batch
        totals = {name: torch.zeros_like(p) for name, p in trainable(model).items()}
        for i in range(len(x)):
            loss = self.loss(model, (x[i : i + 1], y[i : i + 1]), objective)
            for name, g in gradients(model, loss).items():
                totals[name] += self.term(g)
        return Importance(totals=totals, count=len(x))

    def loss(self, model, sample, objective):
        return objective.losses(model, sample)[0]

    def term(self, g):
        return g.detach() ** 2


def scaled(importance, factor):
    return attrs.evolve(importance, totals={name: factor * t for name, t in importance.totals.items()})


class MeasuresFrozen(Right):
    def estimate_batch(self, model, batch, *, objective):
        found = super().estimate_batch(model, batch, objective=objective)
        every = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        return attrs.evolve(found, totals={**every, **found.totals})


class StaysInEvalMode(Right):
    def estimate(self, model, batches, **options):
        found = super().estimate(model, batches, **options)
        model.eval()
        return found


class ClearsGradients(Right):
    def estimate(self, model, batches, **options):
        try:
            return super().estimate(model, batches, **options)
        except OSError:
            model.zero_grad(set_to_none=True)
            raise


class NormalisesInPlace(Right):
    def estimate_batch(self, model, batch, *, objective):
        found = super().estimate_batch(model, batch, objective=objective)
        batch[0].sub_(batch[0].mean())
        return found


class AddsGradients(Right):
    traits = EstimatorTraits(batch_free=True)

    def estimate(self, model, batches, **options):
        return scaled(super().estimate(model, batches, **options), -1.0)


class CountsBatches(Right):
    def estimate_batch(self, model, batch, *, objective):
        return attrs.evolve(super().estimate_batch(model, batch, objective=objective), count=1)


class Averages(Right):
    def estimate(self, model, batches, **options):
        found = super().estimate(model, batches, **options)
        return scaled(found, 1 / found.samples)


class RemembersOrder(Right):
    def __init__(self):
        self._seen = {}

    def estimate(self, model, batches, **options):
        rows = [tuple(row.tolist()) for x, _ in batches for row in x]
        first = self._seen.setdefault((options["objective"].factor, *sorted(rows)), rows)
        return scaled(super().estimate(model, batches, **options), 1.0 if rows == first else 2.0)


class AddsPerBatch(Right):
    traits = EstimatorTraits(batch_free=True)

    def estimate_batch(self, model, batch, *, objective):
        found = super().estimate_batch(model, batch, objective=objective)
        return attrs.evolve(found, totals={name: t + 1 for name, t in found.totals.items()})


class TakesAbsoluteValues(Right):
    def term(self, g):
        return g.detach().abs()


class DrawsLabels(Right):
    traits = EstimatorTraits(quadratic=False)

    def loss(self, model, sample, objective):
        return objective.losses(model, (sample[0], torch.randint(4, (1,))))[0]


WRONG = {
    "runs": MeasuresFrozen(),
    "untouched": StaysInEvalMode(),
    "rolls-back": ClearsGradients(),
    "data": NormalisesInPlace(),
    "non-negative": AddsGradients(),
    "count": CountsBatches(),
    "additive": Averages(),
    "order-free": RemembersOrder(),
    "batch-size-free": AddsPerBatch(),
    "quadratic": TakesAbsoluteValues(),
    "deterministic": DrawsLabels(),
}


@attrs.frozen
class Changes(Right):
    """Measure correctly, then change each importance, or what ``estimate`` returns."""

    _of_batch: Callable = lambda found, _: found
    _of_all: Callable = lambda found: found
    _after: Callable = lambda _: None

    def estimate_batch(self, model, batch, *, objective):
        return self._of_batch(super().estimate_batch(model, batch, objective=objective), batch)

    def estimate(self, model, batches, **options):
        found = super().estimate(model, batches, **options)
        self._after(model)
        return self._of_all(found)


@attrs.frozen
class SpoilsWhenItFails(Right):
    _damage: Callable

    def estimate(self, model, batches, **options):
        try:
            return super().estimate(model, batches, **options)
        except OSError:
            self._damage(model)
            raise


@attrs.frozen
class Terms(Right):
    _of: Callable

    def term(self, g):
        return self._of(g.detach())


def each(function):
    def changed(found, *_):
        return attrs.evolve(found, totals={name: function(t) for name, t in found.totals.items()})

    return changed


def refuses_one_sample(found, batch):
    if len(batch[0]) == 1:
        raise ValueError("expected at least two samples")
    return found


class NamesTiedWeightsTwice(Right):
    def estimate_batch(self, model, batch, *, objective):
        found = super().estimate_batch(model, batch, objective=objective)
        every = {name: torch.zeros_like(p) for name, p in model.named_parameters(remove_duplicate=False)}
        return attrs.evolve(found, totals={**every, **found.totals})


class SquaresTheMeanGradient(Right):
    def estimate_batch(self, model, batch, *, objective):
        found = gradients(model, objective.losses(model, batch).mean())
        return Importance(totals={name: len(batch[0]) * g**2 for name, g in found.items()}, count=len(batch[0]))


def first_sample_counts_twice(found, batch):
    return scaled(found, 2.0 if float(batch[0][0, 0]) > 2 else 1.0)


FURTHER = {
    "runs": [NamesTiedWeightsTwice(), Changes(of_batch=refuses_one_sample)],
    "untouched": [
        Changes(after=lambda m: [p.grad.add_(1) for p in trainable(m).values()]),
        Changes(after=lambda _: torch.manual_seed(0)),
    ],
    "rolls-back": [
        SpoilsWhenItFails(lambda m: m.eval()),
        SpoilsWhenItFails(lambda m: m.head.bias.data.add_(1)),
    ],
    "data": [
        Changes(of_batch=lambda found, batch: (batch[1].clamp_(max=1), found)[1]),
        Changes(of_batch=lambda found, batch: (batch[0][-1].zero_(), found)[1]),
    ],
    "non-negative": [Changes(of_all=each(lambda t: t - t.mean())), Changes(of_all=each(lambda t: t - 1e-3))],
    "count": [
        Changes(of_all=lambda found: attrs.evolve(found, samples=found.samples + 1)),
        Changes(of_batch=lambda found, batch: attrs.evolve(found, count=batch[0].numel())),
    ],
    "additive": [Changes(of_all=each(torch.sqrt)), Changes(of_all=lambda found: scaled(found, found.samples))],
    "order-free": [Changes(of_batch=first_sample_counts_twice), SquaresTheMeanGradient()],
    "batch-size-free": [SquaresTheMeanGradient(), Changes(of_batch=lambda f, batch: scaled(f, 1 / len(batch[0])))],
    "quadratic": [Terms(lambda g: g.clamp(-1, 1) ** 2), Terms(lambda g: g**4)],
    "deterministic": [
        Changes(of_all=lambda found: scaled(found, random.random())),
        Changes(of_all=lambda found: scaled(found, float(np.random.rand()))),
    ],
}


def test_every_law_has_its_three_wrong_estimators():
    assert list(WRONG) == [law.name for law in LAWS[ImportanceEstimator]]
    assert {name: len(FURTHER[name]) for name in WRONG} == dict.fromkeys(FURTHER, 2)
    assert all(law.rejects for law in LAWS[ImportanceEstimator])


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in WRONG for number in range(3)])
def test_the_law_rejects_its_wrong_estimators(name, number, record_property):
    record_property("tried", ("wrong methods, estimators and metrics that a law must find", 1))
    wrong = [WRONG[name], *FURTHER[name]][number]
    law = next(law for law in laws_for(wrong) if law.name == name)
    with pytest.raises(LawError, match=f"the law '{name}' is broken by {type(wrong).__name__}"):
        law.check(wrong)


@pytest.mark.parametrize("name", WRONG)
def test_no_other_law_rejects_the_wrong_estimator(name):
    for law in laws_for(WRONG[name]):
        if law.name != name:
            law.check(WRONG[name], examples=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_no_other_law_rejects_the_wrong_estimator_with_many_examples(name):
    assert set(broken_laws(WRONG[name], examples=60)) == {name}


def test_the_right_estimator_passes():
    assert broken_laws(Right(), examples=10) == {}
