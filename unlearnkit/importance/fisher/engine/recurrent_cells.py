"""Recurrent layers and cells, written out step by step: torch computes each in one call that shows no rows.

Under the engine a call of `torch.lstm` and its relatives is replaced by the function here of the same arguments. One
autograd function runs all steps of a layer in one direction. Its backward has the gradients of all gates at once, and
hands them to the linear rule by way of `linear_rows`: of W_i and b_i with the inputs, of W_h and b_h with the states before.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.engine.rule import visible

State = tuple[Tensor, ...]
"""(h,), or (h, c) of an LSTM."""
_DROPOUT, _TRAIN = 5, 6  # places among the arguments of a function of sequences
_one_dnn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # dy · y (1 − y), in place
_tanh_backward = torch.ops.aten.tanh_backward.grad_input  # dy · (1 − y²), in place


class _Cell(abc.ABC):
    """One step of a recurrent layer and its gradient; all sizes are (n, …), or (T, n, …) of all steps."""

    @abc.abstractmethod
    def step(self, gates: Tensor, across: Tensor, before: State, after: State) -> None:
        """Write the next state, and the activations over ``gates`` = W_i x + b_i; ``across`` is W_h h + b_h."""

    @abc.abstractmethod
    def slopes(self, gates: Tensor, before: State, after: State) -> State:
        """Return what `back` multiplies the gradients of the states by, of all steps; first that of ``across``."""

    @abc.abstractmethod
    def back(self, dh: Tensor, carry: Tensor, *slopes: Tensor) -> Tensor:
        """Turn slopes of one step into gradients in place.

        ``carry`` is the gradient of the state after that does not go through W_h; return that of the state before.
        """

    def of_input(self, across: Tensor, *slopes: Tensor) -> Tensor:
        """Return the gradients of W_i x + b_i, where `back` has been called for all steps."""
        del slopes
        return across


@final
class _LSTM(_Cell):
    """c' = σ(f) c + σ(i) tanh(g) and h' = σ(o) tanh(c'); carries the gradient of c."""

    def step(self, gates: Tensor, across: Tensor, before: State, after: State) -> None:
        i, f, g, o = gates.add_(across).chunk(4, -1)
        gates[:, : 2 * i.shape[1]].sigmoid_()
        torch.mul(f, before[1], out=after[1]).addcmul_(i, g.tanh_())
        torch.tanh(after[1], out=after[0]).mul_(o.sigmoid_())

    def slopes(self, gates: Tensor, before: State, after: State) -> State:
        i, f, g, o = gates.chunk(4, -1)
        tanh_c, found = after[1].tanh(), torch.empty_like(gates)
        d_i, d_f, d_g, d_o = found.chunk(4, -1)
        _sigmoid_backward(g, i, grad_input=d_i)
        _sigmoid_backward(before[1], f, grad_input=d_f)
        _tanh_backward(i, g, grad_input=d_g)
        _sigmoid_backward(tanh_c, o, grad_input=d_o)
        return found, _tanh_backward(o, tanh_c, grad_input=tanh_c), f

    def back(self, dh: Tensor, carry: Tensor, *slopes: Tensor) -> Tensor:
        gates, of_c, f = slopes
        dc = torch.addcmul(carry, dh, of_c)
        i_f_g, o = gates.split([3 * dh.shape[1], dh.shape[1]], -1)
        i_f_g.unflatten(-1, (3, -1)).mul_(dc.unsqueeze(1))
        o.mul_(dh)
        return dc.mul_(f)


@final
class _GRU(_Cell):
    """h' = n + σ(z) (h − n) with n = tanh(n_i + σ(r) n_h); the second state is n_h, which nothing passes on."""

    def step(self, gates: Tensor, across: Tensor, before: State, after: State) -> None:
        width = after[0].shape[1]
        gates[:, : 2 * width].add_(across[:, : 2 * width]).sigmoid_()
        (r, z, n), n_h = gates.chunk(3, -1), after[1].copy_(across[:, 2 * width :])
        n.addcmul_(r, n_h.to(n.dtype)).tanh_()
        torch.sub(before[0], n, out=after[0]).mul_(z).add_(n)

    def slopes(self, gates: Tensor, before: State, after: State) -> State:
        (r, z, n), (h, _), (_, n_h), found = gates.chunk(3, -1), before, after, torch.empty_like(gates)
        d_r, d_z, d_n = found.chunk(3, -1)
        of_n = _tanh_backward(1 - z, n, grad_input=torch.empty_like(n_h))
        _sigmoid_backward(of_n * n_h, r, grad_input=d_r)
        _sigmoid_backward(h - n, z, grad_input=d_z)
        torch.mul(of_n, r, out=d_n)
        return found, of_n, z

    def back(self, dh: Tensor, carry: Tensor, *slopes: Tensor) -> Tensor:
        across, of_n, z = slopes
        dh = dh + carry
        across.unflatten(-1, (3, -1)).mul_(dh.unsqueeze(1))
        of_n.mul_(dh)
        return dh.mul_(z)

    def of_input(self, across: Tensor, *slopes: Tensor) -> Tensor:
        return torch.cat([across[..., : -slopes[0].shape[-1]], slopes[0]], -1)


@final
class _RNN(_Cell):
    """h' = tanh(W_i x + b_i + W_h h + b_h), or max(0, …)."""

    def __init__(self, activation: Callable[..., Tensor], slope: Callable[[Tensor], Tensor]) -> None:
        self._activation, self._slope = activation, slope

    def step(self, gates: Tensor, across: Tensor, before: State, after: State) -> None:
        after[0].copy_(self._activation(gates.add_(across)))

    def slopes(self, gates: Tensor, before: State, after: State) -> State:
        return (self._slope(after[0]),)

    def back(self, dh: Tensor, carry: Tensor, *slopes: Tensor) -> Tensor:
        slopes[0].mul_(dh)
        return carry


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by oneDNN where it can, as torch's own recurrent layers do: MKL takes twice as long on some processors."""
    if x.is_cpu and x.dtype == torch.float32 and _one_dnn and torch.backends.mkldnn.enabled and not torch.is_autocast_enabled("cpu"):
        found: Tensor = _one_dnn(x, weight, bias, "none", [], "")
        return found
    return F.linear(x, weight, bias)


@visible
def linear_rows(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    """Return ``y``, which stands for W x + b: the linear rule taps it, and the steps give it its gradient."""
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return F.linear(x, weight, bias)  # weights made of data, to which autograd goes back
    return y.detach()


@final
class _Steps(torch.autograd.Function):
    """All steps of one layer in one direction, as `_sequence` has made them; its last inputs are results of `linear_rows`."""

    @staticmethod
    def forward(ctx: Any, cell: _Cell, back: bool, states: int, saved: State, *inputs: Tensor) -> State:
        """Return h of all steps, and the last c of an LSTM."""
        del inputs
        ctx.save_for_backward(*saved)
        ctx.cell, ctx.back, ctx.states = cell, back, states
        h, rest = _sides(saved[-2:], back)[1]
        return (h.clone(), rest[0 if back else -1].clone())[:states]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *dc: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs, those of the gates for all steps at once."""
        with torch._C.DisableTorchFunction():  # noqa: SLF001 - torch's own switch
            gates, w_i, w_h, projection, *tracks = ctx.saved_tensors
            dtype = tracks[0].dtype
            w_i, w_h, projection = (None if w is None else w.to(dtype) for w in (w_i, w_h, projection))
            slopes = ctx.cell.slopes(gates.to(dtype), *_sides(tracks, ctx.back))
            steps = list(zip(dy.unbind(), *(s.unbind() for s in slopes), strict=True))[:: 1 if ctx.back else -1]
            carry, across, d_h = dc[0] if dc else torch.zeros_like(tracks[1][0]), None, []
            for dh, *step in steps:
                d_h.append(dh if across is None else dh + _linear(across, w_h.t()))
                inner = d_h[-1] if projection is None else d_h[-1] @ projection
                carry, across = ctx.cell.back(inner, carry, *step), step[0]
            first = [_linear(across, w_h.t()), carry] if dc else [_linear(across, w_h.t()) + carry]
            d_in = ctx.cell.of_input(*slopes)
            dx = _linear(d_in, w_i.t()) if ctx.needs_input_grad[4] else None
            more = [] if projection is None else [torch.stack(d_h[:: 1 if ctx.back else -1], 1)]
            return None, None, None, None, dx, *first, d_in.transpose(0, 1), slopes[0].transpose(0, 1), *more


def _sides(tracks: Sequence[Tensor], back: bool) -> tuple[State, State]:
    """Cut the states of T + 1 times into those before each step and those after it."""
    first, last = tuple(t[:-1] for t in tracks), tuple(t[1:] for t in tracks)
    return (last, first) if back else (first, last)


def _sequence(
    cell: _Cell, x: Tensor, state: State, weights: Sequence[Tensor | None], *, back: bool = False
) -> tuple[Tensor, State]:
    """Return h of all steps, shape (T, n, …), and the last state; weights as torch lists them."""
    w_i, w_h, *rest = weights
    projection = rest.pop() if len(rest) % 2 else None
    b_i, b_h = rest or (None, None)
    assert w_i is not None and w_h is not None, "only biases may be left out"  # noqa: PT018
    with torch.no_grad(), torch._C.DisableTorchFunction():  # noqa: SLF001 - torch's own switch
        gates = _linear(x, w_i, b_i)
        dtype = torch.promote_types(gates.dtype, state[0].dtype)
        tracks = [gates.new_empty((len(x) + 1, *s.shape), dtype=dtype) for s in (*state, *state)[:2]]
        (before, rest_before), (after, rest_after) = _sides(tracks, back)
        for track, first in zip(tracks, state, strict=False):
            track[-1 if back else 0] = first
        inner = after if projection is None else torch.empty_like(rest_after)
        every = (gates, before, rest_before, inner, rest_after, after)
        for gate, h, c, m, new_c, new_h in list(zip(*(t.unbind() for t in every), strict=True))[:: -1 if back else 1]:
            cell.step(gate, _linear(h, w_h, b_h), (h, c), (m, new_c))
            if projection is not None:
                torch.mm(m, projection.to(dtype).t(), out=new_h)
    places = [(x, w_i, b_i, gates), (before, w_h, b_h, gates)]
    places += [] if projection is None else [(inner, projection, None, after.clone())]
    taps = [linear_rows(a.detach().transpose(0, 1), w, b, y.transpose(0, 1)) for a, w, b, y in places]
    fixed = [None if w is None else w.detach() for w in (w_i, w_h, projection)]
    y, *last = _Steps.apply(cell, back, len(state), (gates, *fixed, *tracks), x, *state, *taps)
    return y, (y[0 if back else -1], *last)


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
        starts = list(zip(*((hx,) if isinstance(hx, Tensor) else hx), strict=True))
        ways = 2 if two_ways else 1
        each = len(weights) // (layers * ways)
        y, ends = x.transpose(0, 1) if batch_first else x, []
        for first in range(0, layers * ways, ways):
            found = [
                _sequence(cell, y, starts[i], weights[i * each : (i + 1) * each], back=i > first)
                for i in range(first, first + ways)
            ]
            y = torch.cat([steps for steps, _ in found], -1) if two_ways else found[0][0]
            ends += [end for _, end in found]
        last = [torch.stack(states) for states in zip(*ends, strict=True)]
        return (y.transpose(0, 1) if batch_first else y, *last)

    return run


def _one_step(cell: _Cell) -> Callable[..., Any]:
    def run(x: Tensor, hx: Tensor | State, *weights: Tensor | None) -> Tensor | State:
        if isinstance(hx, Tensor):
            return _sequence(cell, x.unsqueeze(0), (hx,), weights)[1][0]
        return _sequence(cell, x.unsqueeze(0), tuple(hx), weights)[1]

    return run


_RELU = _RNN(torch.relu, lambda h: (h > 0).to(h.dtype))
_TANH = _RNN(torch.tanh, lambda h: 1 - h.square())
_SEQUENCES = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})
_WRITTEN_OUT: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {
        torch.lstm: _layers(_LSTM()),
        torch.gru: _layers(_GRU()),
        torch.rnn_tanh: _layers(_TANH),
        torch.rnn_relu: _layers(_RELU),
        torch.lstm_cell: _one_step(_LSTM()),
        torch.gru_cell: _one_step(_GRU()),
        torch.rnn_tanh_cell: _one_step(_TANH),
        torch.rnn_relu_cell: _one_step(_RELU),
    }
)
