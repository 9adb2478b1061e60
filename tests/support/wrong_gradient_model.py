"""A model for which torch computes wrong gradients on a CPU, for a batch of one sample."""

import torch
from torch import nn


class Permuted(nn.Module):
    """A norm followed by a permutation."""

    def __init__(self, norm):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.one, self.norm, self.two = nn.Conv2d(2, 3, 3), norm, nn.Linear(60, 4)

    def forward(self, x):
        return self.two(self.norm(self.one(x)).permute(0, 2, 3, 1).flatten(1))


def pair():
    """The model, and an equal one that torch differentiates correctly: a group norm with a group per channel."""
    return Permuted(nn.InstanceNorm2d(3, affine=True)), Permuted(nn.GroupNorm(3, 3))


def data(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 2, 6, 7, generator=generator), torch.randint(0, 4, (n,), generator=generator)) for n in sizes
    ]
