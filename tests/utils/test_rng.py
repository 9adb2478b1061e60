"""A block with its own random state."""

import random

import numpy as np
import pytest
import torch

from unlearnkit.utils.rng import private_rng


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_same_seed_gives_the_same_numbers():
    with private_rng(seed=3):
        first = draw()
    with private_rng(seed=3):
        second = draw()
    with private_rng(seed=4):
        other = draw()
    assert first == second
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", [None, 0, 2**40])
def test_global_generators_are_restored(seed):
    with private_rng(seed=1):
        expected = [draw(), draw()]
    with private_rng(seed=1):
        seen = [draw()]
        with private_rng(seed=seed):
            draw()
        seen.append(draw())
    assert seen == expected


def test_global_generators_are_restored_after_an_exception():
    def fail():
        with private_rng(seed=1):
            draw()
            raise ValueError("broken")

    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="broken"):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_generator_continues():
    with private_rng(seed=1):
        expected = draw()
    with private_rng(seed=1), private_rng():
        assert draw() == expected


@pytest.mark.gpu
def test_a_cuda_generator_is_kept_too():
    device = torch.device("cuda", 0)
    before = torch.cuda.get_rng_state(device)
    draws = []
    for _ in range(2):
        with private_rng(device, seed=5):
            draws.append(torch.rand(3, device=device))
    assert torch.equal(*draws)
    assert torch.equal(torch.cuda.get_rng_state(device), before)
