"""`npo` and `simnpo`: the forget set is made unlikely, with a push that fades."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from unlearnkit_methods.neg_grad_plus import NegGradPlus
from unlearnkit_methods.npo import NegativePreference
from unlearnkit_methods.simnpo import SimpleNegativePreference

from unlearnkit import Objective
from unlearnkit.testing import parametrize_with_checks

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05}


@parametrize_with_checks([NegativePreference(epochs=1), SimpleNegativePreference(epochs=1)])
def test_contract(subject, law):
    law.check(subject, examples=6)


def paired(tiny):
    (x1, y1), (x2, y2) = tiny.forget
    return [*zip(tiny.retain, [(x1, y1), (x2, y2), (x1, y1)], strict=True)]


def test_npo_is_the_equation_of_the_paper(tiny, close):
    """2/β·mean log(1 + (π/π_ref)^β), with the probabilities themselves."""
    beta, lam, original = 0.3, 0.7, tiny.model()

    def probability(model, batch):
        x, y = batch
        return torch.softmax(model(x), 1)[range(len(y)), y]

    def loss(kept, forgotten):
        def value(model):
            ratio = probability(model, forgotten) / probability(original, forgotten).detach()
            return 2 / beta * torch.log(1 + ratio**beta).mean() + lam * cross_entropy(model(kept[0]), kept[1])

        return value

    model, _ = tiny.unlearned(NegativePreference(beta=beta, lam=lam, epochs=2, **SGD))
    close(model, tiny.steps(tiny.model(), [loss(k, f) for k, f in paired(tiny)] * 2))


def test_the_first_step_of_npo_is_gradient_ascent_and_a_small_beta_stays_so(tiny, close):
    def ascent(kept, forgotten):
        return lambda m: cross_entropy(m(kept[0]), kept[1]) - cross_entropy(m(forgotten[0]), forgotten[1])

    model, _ = tiny.unlearned(NegativePreference(beta=1e-6, epochs=1, **SGD))
    close(model, tiny.steps(tiny.model(), [ascent(k, f) for k, f in paired(tiny)]), rtol=1e-4, atol=1e-5)


class ThreeLabels(Objective):
    """Each loss three times, as the sum over three predictions."""

    def losses(self, model, batch):
        return 3 * cross_entropy(model(batch[0]), batch[1], reduction="none")

    def predictions(self, batch):
        return torch.full((len(batch[1]),), 3)


@pytest.mark.parametrize("objective", [None, ThreeLabels()])
def test_simnpo_is_the_equation_of_the_paper_for_each_prediction(tiny, close, objective):
    beta, gamma, lam = 2.0, 0.4, 0.7

    def loss(kept, forgotten):
        def value(model):
            log_likelihood = -cross_entropy(model(forgotten[0]), forgotten[1], reduction="none")
            pushed = -2 / beta * torch.log(torch.sigmoid(-beta * log_likelihood - gamma)).mean()
            return pushed + lam * cross_entropy(model(kept[0]), kept[1])

        return value

    method = SimpleNegativePreference(beta=beta, gamma=gamma, lam=lam, epochs=2, **SGD)
    model, _ = tiny.unlearned(method, **({} if objective is None else {"objective": objective}))
    close(model, tiny.steps(tiny.model(), [loss(k, f) for k, f in paired(tiny)] * 2))


@pytest.mark.parametrize("method", [NegativePreference, SimpleNegativePreference])
def test_the_push_fades_where_ascent_does_not_stop(tiny, method):
    def loss(model):
        with torch.no_grad():
            return min(float(cross_entropy(model(x), y)) for x, y in tiny.forget)

    pushed, ascended = (
        loss(tiny.unlearned(one)[0])
        for one in (method(beta=2.5, epochs=300, **SGD), NegGradPlus(beta=0.5, mode="eval", epochs=300, **SGD))
    )
    assert loss(tiny.model()) + 0.3 < pushed < 10 < ascended
