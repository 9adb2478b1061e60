"""Recurrent layers and cells, written out in steps: torch computes each in one call that shows no rows.

Under the engine a call of `torch.lstm` and its relatives is replaced by the function here of the same arguments. One
autograd function takes all steps of a layer in one direction. Its backward has the gradients of all gates side by side
and hands them to the linear rule by way of `linear_rows`: of W_i and b_i with the inputs, of W_h and b_h with the
states before each step.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

import attrs
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.engine.rule import visible

State = tuple[Tensor, ...]
"""(h, c) of an LSTM, (h, W_hn h + b_hn) of a GRU; an RNN uses h alone."""
_DROPOUT, _TRAIN = 5, 6  # places among the arguments of a function of sequences
_ONE_DNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_SIGMOID = torch.ops.aten.sigmoid_backward.grad_input  # (d, y) to d · y (1 − y)
_TANH = torch.ops.aten.tanh_backward.grad_input  # (d, y) to d · (1 − y²)


@final
@attrs.frozen
class _Cell:
    """One kind of step and its gradient.

    `step` gets W_i x + b_i and W_h h + b_h, writes its activations over the former, and writes the next state. `slopes`
    gets these of all steps, and returns what `back` needs, first the factors that gradients of states have in those of
    W_h h + b_h and of W_i x + b_i. `back` goes back one step: it multiplies these two by dh and by what else the next
    step has carried back, in place, and returns what this step carries back besides W_hᵀ.
    """

    step: Callable[[Tensor, Tensor, State, State], None]
    slopes: Callable[[Tensor, State, State], State]
    back: Callable[..., Tensor]


def _lstm_step(gates: Tensor, across: Tensor, before: State, after: State) -> None:
    """Write c' = σ(f) c + σ(i) tanh(g) and h' = σ(o) tanh(c')."""
    i, f, g, o = gates.add_(across).chunk(4, -1)
    gates[:, : 2 * i.shape[1]].sigmoid_()
    torch.mul(f, before[1], out=after[1]).addcmul_(i, g.tanh_())
    torch.tanh(after[1], out=after[0]).mul_(o.sigmoid_())


def _lstm_slopes(gates: Tensor, before: State, after: State) -> State:
    (i, f, g, o), d, tanh_c = gates.chunk(4, -1), torch.empty_like(gates), after[1].tanh()
    d_i, d_f, d_g, d_o = d.chunk(4, -1)
    _SIGMOID(g, i, grad_input=d_i)
    _SIGMOID(before[1], f, grad_input=d_f)
    _TANH(i, g, grad_input=d_g)
    _SIGMOID(tanh_c, o, grad_input=d_o)
    return d, d, _TANH(o, tanh_c, grad_input=tanh_c), f


def _lstm_back(dh: Tensor, dc: Tensor, d: Tensor, _: Tensor, of_c: Tensor, f: Tensor) -> Tensor:
    dc, width = torch.addcmul(dc, dh, of_c), dh.shape[1]
    d[:, : 3 * width].view(-1, 3, width).mul_(dc.unsqueeze(1))
    d[:, 3 * width :].mul_(dh)
    return dc.mul_(f)


def _gru_step(gates: Tensor, across: Tensor, before: State, after: State) -> None:
    """Write h' = n + σ(z) (h − n) with n = tanh(n_i + σ(r) n_h), and n_h."""
    (r, z, n), width = gates.chunk(3, -1), gates.shape[1] // 3
    gates[:, : 2 * width].add_(across[:, : 2 * width]).sigmoid_()
    n.addcmul_(r, across[:, 2 * width :]).tanh_()
    torch.sub(before[0], n, out=after[0]).mul_(z).add_(n)
    after[1].copy_(across[:, 2 * width :])


def _gru_slopes(gates: Tensor, before: State, after: State) -> State:
    (r, z, n), d = gates.chunk(3, -1), torch.empty_like(gates)
    d_r, d_z, d_n = d.chunk(3, -1)
    _TANH(1 - z, n, grad_input=d_n)
    _SIGMOID(d_n * after[1], r, grad_input=d_r)
    _SIGMOID(before[0] - n, z, grad_input=d_z)
    return torch.cat([d_r, d_z, d_n * r], -1), d, z


def _gru_back(dh: Tensor, carry: Tensor, across: Tensor, inside: Tensor, z: Tensor) -> Tensor:
    dh, width = dh + carry, dh.shape[1]
    for d in (across, inside):
        d.view(-1, 3, width).mul_(dh.unsqueeze(1))
    return dh.mul_(z)


def _rnn(activation: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> _Cell:
    """Make h' = activation(W_i x + b_i + W_h h + b_h), whose slope is a function of h'."""

    def step(gates: Tensor, across: Tensor, _: State, after: State) -> None:
        after[0].copy_(activation(gates.add_(across)))

    def back(dh: Tensor, carry: Tensor, d: Tensor, _: Tensor) -> Tensor:
        d.mul_(dh)
        return carry

    return _Cell(step, lambda _gates, _before, after: (slope(after[0]),) * 2, back)


@visible
def linear_rows(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    """Stand for W x + b, which was computed in ``y``: the gradient of the result is that of W x + b."""
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return F.linear(x, weight, bias)  # where no rule has detached them, the graph has to show them
    return y.detach()


@final
class _Steps(torch.autograd.Function):
    """Puts what `_sequence` has computed on the graph."""

    @staticmethod
    def forward(ctx: Any, cell: _Cell, states: int, saved: State, *inputs: Tensor) -> State:
        """Return h of all steps, and the last c of an LSTM: copies, which may be edited in place."""
        del inputs
        ctx.save_for_backward(*saved)
        ctx.cell = cell
        return (saved[-2][1:].clone(), saved[-1][-1].clone())[:states]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *dc: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of the first state and of what `linear_rows` returned."""
        gates, w_i, w_h, projection, *tracks = ctx.saved_tensors  # which checkpointing may compute, and must be seen
        with torch._C.DisableTorchFunction():  # noqa: SLF001 - torch's own switch
            before, after = tuple(t[:-1] for t in tracks), tuple(t[1:] for t in tracks)
            slopes = ctx.cell.slopes(gates.to(tracks[0].dtype), before, after)
            carry, outs = dc[0] if dc else torch.zeros_like(tracks[1][0]), list[Tensor]()
            through = torch.zeros_like(tracks[0][0])
            for dh, *step in reversed(_steps(dy, *slopes)):
                outs.append(dh + through)
                inner = outs[-1] if projection is None else _linear(outs[-1], projection.t())
                carry = ctx.cell.back(inner, carry, *step)
                through = _linear(step[0], w_h.t())
            dx = _linear(slopes[1], w_i.t()) if ctx.needs_input_grad[3] else None
            found = [*slopes[1::-1], *([] if projection is None else [torch.stack(outs[::-1])])]
            first = (through, carry) if dc else (through + carry,)
            return None, None, None, dx, *first, *(g.transpose(0, 1) for g in found)


def _sequence(cell: _Cell, x: Tensor, state: State, weights: Sequence[Tensor | None]) -> tuple[Tensor, State]:
    """Return h of all steps, shape (T, n, …), and the last state; weights as torch lists them."""
    w_i, w_h, *rest = weights
    projection = rest.pop() if len(rest) % 2 else None
    b_i, b_h = rest or (None, None)
    assert w_i is not None and w_h is not None, "only biases may be left out"  # noqa: PT018
    with torch.no_grad(), torch._C.DisableTorchFunction():  # noqa: SLF001 - torch's own switch
        gates = _linear(x, w_i, b_i)
        dtype = torch.promote_types(gates.dtype, state[0].dtype)
        tracks = [gates.new_empty((len(x) + 1, *s.shape), dtype=dtype) for s in (*state, *state)[:2]]
        for track, first in zip(tracks, state, strict=False):
            track[0] = first
        h, c = tracks
        inner = h[1:] if projection is None else torch.empty_like(c[1:])
        for gate, *before, m, new_c, new_h in _steps(gates, h[:-1], c[:-1], inner, c[1:], h[1:]):
            cell.step(gate, _linear(before[0], w_h, b_h), tuple(before), (m, new_c))
            if projection is not None:
                new_h.copy_(_linear(m, projection))
    uses = [(x, w_i, b_i, gates), (h[:-1], w_h, b_h, gates)]
    if projection is not None:
        uses.append((inner, projection, None, h[1:].clone()))
    rows = [linear_rows(a.detach().transpose(0, 1), w, b, y.transpose(0, 1)) for a, w, b, y in uses]
    fixed = (w if w is None else w.detach() for w in (w_i, w_h, projection))
    y, *last = _Steps.apply(cell, len(state), (gates, *fixed, h, c), x, *state, *rows)
    return y, (y[-1], *last)


def _steps(*tensors: Tensor) -> list[State]:
    return list(zip(*(t.unbind() for t in tensors), strict=True))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by oneDNN, as torch's own recurrent layers do; MKL takes twice as long on some processors."""
    usable = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if usable and _ONE_DNN is not None and bool(torch.backends.mkldnn.enabled):
        found: Tensor = _ONE_DNN(x, weight, bias, "none", [], "")
        return found
    return F.linear(x, weight.to(x.dtype), bias)


def written_out(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Find what a function of torch does, in functions that the engine has rules for."""
    return _WRITTEN_OUT.get(function)


def hindrance(function: Callable[..., Any], args: Sequence[Any]) -> str | None:
    """Say why a call cannot be written out."""
    if function not in _SEQUENCES or len(args) <= _TRAIN:
        return None
    if not isinstance(args[2], list):  # batch sizes move the weights on by one
        return "a packed sequence, in which the samples stand in the order of their lengths"
    return "dropout between its layers" if args[_DROPOUT] and args[_TRAIN] else None


def _layers(cell: _Cell) -> Callable[..., Any]:
    """Write out a function of whole sequences, whose first result is time by time and whose others are last states."""

    def run(x: Tensor, hx: Tensor | State, weights: Any, *options: Any) -> tuple[Tensor, ...]:
        _, layers, _, _, two_ways, batch_first = options
        starts = zip(*((hx,) if isinstance(hx, Tensor) else hx), strict=True)
        each, ends = len(weights) // (layers * (1 + two_ways)), []
        y, found = x.transpose(0, 1) if batch_first else x, list[Tensor]()
        for i, start in enumerate(starts):
            back = two_ways and i % 2
            steps, end = _sequence(cell, y.flip(0) if back else y, start, weights[i * each : (i + 1) * each])
            found.append(steps.flip(0) if back else steps)
            ends.append(end)
            if back or not two_ways:
                y, found = torch.cat(found, -1) if back else steps, []
        last = [torch.stack(states) for states in zip(*ends, strict=True)]
        return (y.transpose(0, 1) if batch_first else y, *last)

    return run


def _one_step(cell: _Cell) -> Callable[..., Any]:
    def run(x: Tensor, hx: Tensor | State, *weights: Tensor | None) -> Tensor | State:
        _, last = _sequence(cell, x.unsqueeze(0), (hx,) if isinstance(hx, Tensor) else tuple(hx), weights)
        return last[0] if isinstance(hx, Tensor) else last

    return run


_CELLS: Mapping[str, _Cell] = MappingProxyType(
    {
        "lstm": _Cell(_lstm_step, _lstm_slopes, _lstm_back),
        "gru": _Cell(_gru_step, _gru_slopes, _gru_back),
        "rnn_tanh": _rnn(torch.tanh, lambda h: 1 - h.square()),
        "rnn_relu": _rnn(torch.relu, lambda h: (h > 0).to(h.dtype)),
    }
)
_SEQUENCES = frozenset(getattr(torch, name) for name in _CELLS)
_WRITTEN_OUT: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {getattr(torch, name): _layers(cell) for name, cell in _CELLS.items()}
    | {getattr(torch, f"{name}_cell"): _one_step(cell) for name, cell in _CELLS.items()}
)
