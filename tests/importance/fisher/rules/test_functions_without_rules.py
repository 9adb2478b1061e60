"""Functions of data and parameters that no rule names, and tensors made of parameters, against the float64 oracle."""

import warnings

import pytest
import torch
from fisher_models import Uses
from fisher_oracle import SumOfSquares, distance, engine_only
from torch import nn
from torch.nn import functional as F

from unlearnkit import DiagonalFisher

T, D = 3, 4


def weights(*shape):
    return torch.randn(*shape) * 0.5


def attention(m, x):
    heads = x.view(len(x), T, 2, 2).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=m.bias)


def assigned_slice(m, x):
    y = x.clone()
    y[:, ::2] = m.token.expand(len(x), 2, D)
    return y


def in_place(m, x):
    y = x * 1.0
    y += m.w
    y *= m.s
    y -= m.w
    y /= m.s.exp()
    return y


def sparse_experts(m, x):
    tokens = x.reshape(-1, D)
    scores = F.linear(tokens, m.gate).softmax(-1)
    top, chosen = scores.topk(2, dim=-1)
    y = torch.zeros_like(tokens)
    for expert in chosen.unique():
        row, place = torch.where(chosen == expert)
        y.index_add_(0, row, F.linear(tokens[row], m.up[expert]).tanh() * top[row, place, None])
    return y.view_as(x)


def grouped(m, x):
    tokens = x.reshape(-1, D)
    chosen = tokens[:, 0].gt(0).long() + tokens[:, 1].gt(0).long()
    order = chosen.argsort(stable=True)
    ends = torch.bincount(chosen, minlength=3).cumsum(0).to(torch.int32)
    y = F.grouped_mm(tokens[order], m.up, offs=ends)
    return torch.zeros_like(y).index_copy(0, order, y).view(len(x), T, D)


def relative_position(m, x):
    places = torch.arange(T)
    bias = m.table[places[:, None] - places + T - 1].permute(2, 0, 1)
    return (torch.einsum("nid,njd->nij", x, x).unsqueeze(1) + bias).softmax(-1) @ x.unsqueeze(1)


def two_towers(m, x):
    image, text = F.normalize(F.linear(x[:, 0], m.a), dim=-1), F.normalize(F.linear(x[:, 1], m.b), dim=-1)
    return (image @ text.T * m.scale.exp()).diagonal().unsqueeze(1)


def assembled(m, x):
    w = torch.zeros(D, D)  # of the weights' dtype in float64 too
    w = w.to(m.v)
    w[torch.tensor([0, 1, 2]), torch.tensor([3, 0, 1])] = m.v
    return F.linear(x, w + m.base)


def low_rank_norm(m, x):
    w = m.base + m.a @ m.b
    return F.linear(x, w) * (m.size / w.norm(dim=1).detach())


class HadamardProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * b, g * a


def time_major(m, x):
    return torch.einsum("tni,hio->tnho", x.transpose(0, 1), m.w).transpose(0, 1).tanh()


FORWARD = {
    "where": (lambda m, x: torch.where(x > 0, x, m.w), {"w": weights(D)}),
    "where, both sides": (lambda m, x: torch.where(x > 0, m.v * x, m.w), {"w": weights(T, D), "v": weights(D)}),
    "addcmul": (lambda m, x: torch.addcmul(m.b, m.w, x), {"w": weights(D), "b": weights(D)}),
    "addcmul with a value": (lambda m, x: torch.addcmul(x, x, m.w, value=0.3), {"w": weights(T, D)}),
    "addcdiv": (lambda m, x: torch.addcdiv(x, x, m.w.exp()), {"w": weights(D)}),
    "lerp": (lambda m, x: torch.lerp(x, x.tanh(), m.w), {"w": weights(D)}),
    "lerp between": (lambda m, x: torch.lerp(m.w.expand_as(x), x, x.sigmoid()), {"w": weights(D)}),
    "einsum with stacked weights": (
        lambda m, x: torch.einsum("ntd,hde->nhte", x, m.w),
        {"w": weights(2, D, 3)},
    ),
    "time-major einsum": (time_major, {"w": weights(2, D, 3)}),
    "an entry": (lambda m, x: F.linear(x, m.w[1]) + F.linear(x, m.w[0]).tanh(), {"w": weights(3, D, D)}),
    "columns": (lambda m, x: F.linear(x, m.w[:, :D]) + F.linear(x.tanh(), m.w[:, D:]), {"w": weights(5, 2 * D)}),
    "overlapping slices": (lambda m, x: F.linear(x, m.w[:4]) + F.linear(x, m.w[1:5]), {"w": weights(6, D)}),
    "a slice and all": (lambda m, x: F.linear(x, m.w[:4]) + F.linear(x, m.w).sum(-1, True), {"w": weights(6, D)}),
    "chunks": (lambda m, x: sum(F.linear(x, w).tanh() for w in m.w.chunk(3)), {"w": weights(3 * D, D)}),
    "transposed": (lambda m, x: F.linear(x.tanh(), m.w.t()), {"w": weights(D, 5)}),
    "looked up places": (lambda m, x: x + F.embedding(torch.arange(T), m.w), {"w": weights(7, D)}),
    "looked up twice": (lambda m, x: x * F.embedding(torch.tensor([4, 4, 1]), m.w), {"w": weights(7, D)}),
    "index_select": (lambda m, x: x * m.w.index_select(0, torch.tensor([2, 0, 2])), {"w": weights(4, D)}),
    "attention with a learned bias": (attention, {"bias": weights(1, 2, T, T)}),
    "weight on the left": (lambda m, x: torch.matmul(m.w, x), {"w": weights(5, T)}),
    "addmm with alpha and beta": (
        lambda m, x: torch.addmm(m.b, x.flatten(1), m.w, beta=0.5, alpha=2.0),
        {"b": weights(2), "w": weights(T * D, 2)},
    ),
    "baddbmm": (lambda m, x: torch.baddbmm(x, x, m.w.expand(len(x), D, D)), {"w": weights(1, D, D)}),
    "bilinear": (lambda m, x: F.bilinear(x, x.tanh(), m.w, m.b), {"w": weights(2, D, D), "b": weights(2)}),
    "cdist": (lambda m, x: torch.cdist(x, m.w.unsqueeze(0)), {"w": weights(5, D)}),
    "in place": (in_place, {"w": weights(D), "s": weights(T, 1)}),
    "token in a slice": (assigned_slice, {"token": weights(1, 1, D)}),
    "token under a mask": (lambda m, x: torch.where((x[..., :1] > 0), m.token, x), {"token": weights(1, 1, D)}),
    "a sink for attention": (
        lambda m, x: torch.cat([x, m.sink.reshape(1, 1, D).expand(len(x), 2, -1)], 1).softmax(1),
        {"sink": weights(D)},
    ),
    "a token without a dimension for samples": (
        lambda m, x: torch.cat([m.token.expand(len(x), 1, -1), x], 1),
        {"token": weights(D)},
    ),
    "rows for every sample": (
        lambda m, x: torch.bmm(x.reshape(-1, 1, D), m.w.repeat(len(x), 1, 1)).view(len(x), T, D),
        {"w": weights(T, D, D)},
    ),
    "sparse experts": (sparse_experts, {"gate": weights(4, D), "up": weights(4, D, D)}),
    "relative position bias": (relative_position, {"table": weights(2 * T - 1, 2)}),
    "two towers": (two_towers, {"a": weights(3, D), "b": weights(3, D), "scale": torch.tensor(0.3)}),
    "weights assembled in place": (assembled, {"v": weights(3), "base": weights(D, D)}),
    "rank one and magnitude": (
        low_rank_norm,
        {"a": weights(D, 1), "b": weights(1, D), "size": weights(D), "base": weights(D, D)},
    ),
    "autograd function of weights": (
        lambda m, x: F.linear(x, HadamardProduct.apply(m.a, m.b)),
        {"a": weights(5, D), "b": weights(5, D)},
    ),
    "hypernetwork edited in place": (
        lambda m, x: x * F.relu(F.linear(torch.eye(T, D).to(m.a), m.a), inplace=True),
        {"a": weights(D, D)},
    ),
}


@pytest.mark.parametrize("sizes", [[5, 3], [4, 4, 1]])
@pytest.mark.parametrize("kind", FORWARD)
def test_functions(kind, sizes):
    forward, parameters = FORWARD[kind]
    model = Uses(forward, **{name: w.clone() for name, w in parameters.items()}).double()
    torch.manual_seed(1)
    data = [(torch.randn(n, T, D).double(), torch.randn(n)) for n in sizes]
    engine_only(model, data, SumOfSquares(), 1e-10)


def test_rows_sorted_by_expert():
    """Its product exists in float32 on the CPU, and needs rows of 16 bytes."""
    torch.manual_seed(0)
    model, data = Uses(grouped, up=weights(3, D, D)), [(torch.randn(n, T, D), torch.randn(n)) for n in (5, 3)]
    one = DiagonalFisher(chunk=1).estimate(model, data, objective=SumOfSquares()).totals
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = DiagonalFisher().estimate(model, data, objective=SumOfSquares()).totals
    assert distance(dict(seen), {name: t.double() for name, t in one.items()}) < 1e-5


class Indexed(nn.Module):
    """An index that is no buffer, and a prompt that one entry of it chooses for every sample."""

    def __init__(self):
        super().__init__()
        self.table, self.places = nn.Embedding(6, D), {"prompt": torch.arange(2)}

    def forward(self, x):
        places = self.places["prompt"].unsqueeze(0).expand(len(x), -1)
        prompt = self.table(places[:1]).repeat(len(x), 1, 1)
        return torch.cat([prompt, x], 1).softmax(1)


def test_tensors_that_a_module_keeps_are_no_data():
    torch.manual_seed(0)
    engine_only(Indexed().double(), [(torch.randn(5, T, D).double(), torch.randn(5))], SumOfSquares(), 1e-10)
