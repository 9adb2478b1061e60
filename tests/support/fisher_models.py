"""One model with a layer of every family, and data for it."""

import attrs
import torch
from torch import nn

from unlearnkit import Objective


class Everything(nn.Module):
    """A layer of every family, a tied weight, a position embedding, a class token, and an unused layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.deep = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=4)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.norms = nn.ModuleList([nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)])
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(17, 4))
        self.layer_norm, self.rms = nn.LayerNorm(4), nn.RMSNorm(4)
        self.table, self.tied = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.tied.weight = self.table.weight
        self.scale, self.matrix = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4, 4))
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)
        self.exponent, self.unused = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2))

    def forward(self, x, words):
        x = self.up(self.deep(self.conv(x)))
        for norm in self.norms:
            x = norm(x)
        x = x.flatten(2).transpose(1, 2)[:, :16]
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = self.rms(self.layer_norm(x)) + self.table(words).mean(1, keepdim=True)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = (x @ self.matrix) * self.scale + x.abs() ** self.exponent
        return torch.cat([self.head(x.mean(1)), self.tied(x[:, 0])], 1)


@attrs.frozen
class Labelled(Objective):
    """Ordinary classification of two inputs."""

    def losses(self, model, batch):
        return nn.functional.cross_entropy(model(*batch[:-1]), batch[-1], reduction="none")


def everything(dtype=torch.float64):
    torch.manual_seed(0)
    model = Everything().eval().to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    return model


def mixed(*sizes, dtype=torch.float64):
    torch.manual_seed(1)
    return [
        (torch.randn(n, 2, 5, 5, dtype=dtype), torch.randint(0, 5, (n, 3)), torch.randint(0, 3, (n,))) for n in sizes
    ]


class Uses(nn.Module):
    """A module whose forward is given."""

    def __init__(self, forward, **weights):
        super().__init__()
        for name, w in weights.items():
            setattr(self, name, nn.Parameter(w))
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)
