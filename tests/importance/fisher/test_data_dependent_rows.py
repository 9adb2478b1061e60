"""Rows whose owners depend on the data: derived for every batch, also where their number stays the same."""

import pytest
import torch
from fisher_oracle import engine_only
from torch import nn

from unlearnkit import CrossEntropy
from unlearnkit.importance import estimate_groups

WIDTH, CLASSES = 6, 4


class Parts(nn.Module):
    """A layer on rows, which are summed for each sample before the head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.m, self.f = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.norm, self.scale = nn.LayerNorm(WIDTH), nn.Parameter(torch.rand(WIDTH) + 0.5)

    def rows(self, x):
        return self.norm(torch.relu(self.m(x))) * self.scale

    def together(self, rows, who, samples):
        return self.f(rows.new_zeros(samples, WIDTH).index_add(0, who, rows))


class Unpadded(Parts):
    """Tokens that are not padding, concatenated over the samples."""

    def forward(self, t):
        who, where = (t != 0).nonzero(as_tuple=True)
        return self.together(self.rows(self.e(t[who, where])), who, len(t))


class Masked(Parts):
    def forward(self, t):
        kept = t != 0
        who = torch.arange(len(t)).unsqueeze(1).expand_as(t)[kept]
        return self.together(self.rows(self.e(t)[kept]), who, len(t))


class Edges(Parts):
    """Messages along edges between nodes; the nodes of all graphs are concatenated."""

    def forward(self, t):
        nodes, graph = self.e(t).flatten(0, 1), torch.arange(len(t)).repeat_interleave(t.shape[1])
        edges = ((t.unsqueeze(2) + t.unsqueeze(1)) % 3 == 0).nonzero()
        source = edges[:, 0] * t.shape[1] + edges[:, 1]
        return self.together(self.rows(nodes.index_select(0, source)), graph[source], len(t))


class Queues(Parts):
    """Tokens sorted by their experts, and back."""

    def forward(self, t):
        x = self.e(t).flatten(0, 1)
        expert = torch.bucketize(t.flatten(), torch.tensor([5, 9, 14]))
        order = expert.argsort(stable=True)
        who = torch.arange(len(t)).repeat_interleave(t.shape[1])[order]
        return self.together(self.rows(x[order]), who, len(t))


class Split(Parts):
    """Lengths read in Python."""

    def forward(self, t):
        lengths = (t != 0).sum(1).tolist()
        rows = self.rows(torch.cat([self.e(one[:length]) for one, length in zip(t, lengths, strict=True)]))
        return self.f(torch.stack([part.sum(0) for part in rows.split(lengths)]))


class Twice(Unpadded):
    """The same weights on the padded tokens too."""

    def forward(self, t):
        return super().forward(t) + self.f(self.rows(self.e(t)).sum(1))


MODELS = [Unpadded, Masked, Edges, Queues, Split, Twice]
LENGTHS = ([4, 4, 4, 4], [6, 2, 5, 3], [2, 6, 3, 5], [1, 6, 6, 3], [6, 6, 1, 1], [3, 6], [2])


def batch(lengths, seed):
    made = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(lengths), 6, dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(1, 20, (length,), generator=made)
    return tokens, torch.randint(0, CLASSES, (len(lengths),), generator=made)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("options", [{}, {"recheck": 1}, {"chunk": 2}], ids=str)
def test_row_owners_are_derived_for_each_batch(make, options):
    data = [batch(lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    engine_only(make().double(), data, tolerance=1e-9, **options)


@pytest.mark.parametrize("make", MODELS)
def test_groups_within_a_batch(make):
    model, data = make().double(), [batch(lengths, seed) for seed, lengths in enumerate(LENGTHS[:4])]
    groups = estimate_groups(model, data, objective=CrossEntropy(), key=-1)
    for key, group in groups.items():
        alone = [(t[y == key], y[y == key]) for t, y in data if (y == key).any()]
        expected = engine_only(model, alone, tolerance=1e-9)
        for name, total in group.totals.items():
            torch.testing.assert_close(total, expected[name], rtol=1e-9, atol=1e-18)


class Repeated(Parts):
    """The first token of each sample gives its number of rows: up to 361."""

    def forward(self, t):
        times = t[:, 0] ** 2
        who = torch.arange(len(t)).repeat_interleave(times)
        return self.together(self.rows(self.e(t[:, 0]).repeat_interleave(times, 0)), who, len(t))


def test_samples_with_very_different_numbers_of_rows():
    engine_only(Repeated().double(), [batch([6] * 4, seed) for seed in range(4)], tolerance=1e-9)
