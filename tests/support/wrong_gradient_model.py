"""A model whose gradients torch gets wrong on a CPU, in all its weights, for a batch of one sample."""

import torch
from torch import nn


class Permuted(nn.Module):
    """A norm, and a permutation behind it."""

    def __init__(self, norm):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.one, self.norm, self.two = nn.Conv2d(2, 3, 3), norm, nn.Linear(60, 4)

    def forward(self, x):
        return self.two(self.norm(self.one(x)).permute(0, 2, 3, 1).flatten(1))


def pair():
    """The model, and the same function that torch differentiates right: as many groups as channels."""
    return Permuted(nn.InstanceNorm2d(3, affine=True)), Permuted(nn.GroupNorm(3, 3))


def data(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 2, 6, 7, generator=generator), torch.randint(0, 4, (n,), generator=generator)) for n in sizes
    ]
