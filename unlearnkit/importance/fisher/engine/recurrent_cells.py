"""Recurrent layers and cells, written out in linear layers: torch computes each in one call that shows no rows.

Under the engine a call of `torch.lstm` and its relatives is replaced by the function here of the same arguments, whose
linear layers go by their own rule. The weights from step to step are used once per step, which are rows of one use.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

State = tuple[Tensor, ...]
"""(h,), or (h, c) of an LSTM."""
Step = Callable[[Tensor, Tensor, State], State]
"""Takes W_i x + b_i, W_h h + b_h and the state; returns the next state."""
_DROPOUT, _TRAIN = 5, 6  # places among the arguments of a function of sequences


def lstm_step(inside: Tensor, across: Tensor, state: State) -> State:
    """Return c' = σ(f) c + σ(i) tanh(g) and h' = σ(o) tanh(c')."""
    i, f, g, o = (inside + across).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(inside: Tensor, across: Tensor, state: State) -> State:
    """Return h' = (1 − σ(z)) n + σ(z) h with n = tanh(n_i + σ(r) n_h)."""
    (r, z, n), (r_h, z_h, n_h) = inside.chunk(3, -1), across.chunk(3, -1)
    new = (n + (r + r_h).sigmoid() * n_h).tanh()
    return (new + (z + z_h).sigmoid() * (state[0] - new),)


def tanh_step(inside: Tensor, across: Tensor, state: State) -> State:
    """Return h' = tanh(W_i x + b_i + W_h h + b_h)."""
    del state
    return ((inside + across).tanh(),)


def relu_step(inside: Tensor, across: Tensor, state: State) -> State:
    """Return h' = max(0, W_i x + b_i + W_h h + b_h)."""
    del state
    return ((inside + across).relu(),)


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


def _layers(step: Step) -> Callable[..., Any]:
    """Write out a function of whole sequences, whose first result is time by time and whose others are last states."""

    def run(x: Tensor, hx: Tensor | State, weights: Any, *options: Any) -> tuple[Tensor, ...]:
        biased, layers, _, _, two_ways, batch_first = options
        starts = list(zip(*((hx,) if isinstance(hx, Tensor) else hx), strict=True))
        ways = 2 if two_ways else 1
        held = [_Weights(some, biased) for some in _split(weights, layers * ways)]
        y, ends = x.transpose(0, 1) if batch_first else x, []
        for first in range(0, layers * ways, ways):
            found = [_sequence(step, y, starts[i], held[i], back=i > first) for i in range(first, first + ways)]
            y = torch.cat([steps for steps, _ in found], -1)
            ends += [end for _, end in found]
        last = [torch.stack(states) for states in zip(*ends, strict=True)]
        return (y.transpose(0, 1) if batch_first else y, *last)

    return run


def _sequence(step: Step, x: Tensor, state: State, w: "_Weights", *, back: bool) -> tuple[Tensor, State]:
    inside = F.linear(x, w.inside, w.inside_bias).unbind()  # of all times at once
    found = []
    for now in reversed(inside) if back else inside:
        state = step(now, F.linear(state[0], w.across, w.across_bias), state)
        if w.projection is not None:
            state = (F.linear(state[0], w.projection), *state[1:])
        found.append(state[0])
    return torch.stack(found[::-1] if back else found), state


def _cell(step: Step) -> Callable[..., Any]:
    def run(x: Tensor, hx: Tensor | State, *weights: Tensor | None) -> Tensor | State:
        inside, across, *biases = weights
        inside_bias, across_bias = biases or (None, None)
        assert inside is not None and across is not None, "only biases may be left out"  # noqa: PT018
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        found = step(F.linear(x, inside, inside_bias), F.linear(state[0], across, across_bias), state)
        return found[0] if isinstance(hx, Tensor) else found

    return run


@final
class _Weights:
    """The weights of one layer in one direction, as torch lists them."""

    def __init__(self, held: Sequence[Tensor], biased: bool) -> None:
        self.inside, self.across = held[:2]
        self.inside_bias: Tensor | None = held[2] if biased else None
        self.across_bias: Tensor | None = held[3] if biased else None
        self.projection = held[-1] if len(held) % 2 else None


def _split(weights: Sequence[Tensor], parts: int) -> Iterator[Sequence[Tensor]]:
    each = len(weights) // parts
    return (weights[at : at + each] for at in range(0, len(weights), each))


_SEQUENCES = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})
_WRITTEN_OUT: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {
        torch.lstm: _layers(lstm_step),
        torch.gru: _layers(gru_step),
        torch.rnn_tanh: _layers(tanh_step),
        torch.rnn_relu: _layers(relu_step),
        torch.lstm_cell: _cell(lstm_step),
        torch.gru_cell: _cell(gru_step),
        torch.rnn_tanh_cell: _cell(tanh_step),
        torch.rnn_relu_cell: _cell(relu_step),
    }
)
