"""Methods on a small language model: they change the forgotten text's likelihood, and padding changes nothing."""

import copy
import functools

import pytest
import torch

from tests.models.test_causal_language_model import Gpt
from unlearnkit import PluginManager, UnlearningInputs
from unlearnkit.models import CausalLanguageModel

OBJECTIVE = CausalLanguageModel()
OPTIONS = {
    "grad-diff": {},
    "npo": {"beta": 0.5},
    "simnpo": {},
    "undial": {"gamma": 3.0},
    "rmu": {"layer": "norm", "c": 30.0, "alpha": 0.1},
    "scrub": {"max_epochs": 20, "temperature": 1.0},
    "bad-teacher": {},
    "neg-grad-plus": {"beta": 0.5, "optimizer": "adam"},
    "capped-neg-grad": {"c": 1.0},
    "random-label": {},
}


def text(*rows, length):
    """Texts that are padded to a length, with tokens that a model would notice."""
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    tokens = torch.tensor([list(row) + [7] * (length - len(row)) for row in rows])
    return {"input_ids": tokens, "attention_mask": mask}


FORGET, RETAIN = ((1, 2, 3, 4), (5, 6)), ((8, 9, 10), (3, 1, 2))


@functools.cache
def known():
    """A model that has learnt all texts."""
    torch.manual_seed(0)
    learnt = Gpt().double().eval()
    optimizer = torch.optim.Adam(learnt.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        OBJECTIVE.losses(learnt, text(*FORGET, *RETAIN, length=4)).mean().backward()
        optimizer.step()
    return learnt


def unlearned(name, length, *, epochs=3):
    torch.manual_seed(1)
    edited = copy.deepcopy(known())
    inputs = UnlearningInputs(
        forget_data=[text(*FORGET, length=length)],
        retain_data=[text(*RETAIN, length=length)],
        model_factory=lambda: Gpt().double(),
        objective=OBJECTIVE,
    )
    options = {"epochs": epochs, "learning_rate": 0.01, "mode": "eval", **OPTIONS[name]}
    PluginManager().unlearner(name)(**options).unlearn(edited, inputs)
    return edited


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "random-label"])  # it draws for padding, too
def test_padding_changes_nothing(name):
    one, other = (unlearned(name, length) for length in (4, 6))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_forgotten_texts_become_less_likely(name):
    data = text(*FORGET, length=4)
    with torch.no_grad():
        before, after = (OBJECTIVE.losses(one, data).sum() for one in (known(), unlearned(name, 4, epochs=20)))
    assert after > before + 1
