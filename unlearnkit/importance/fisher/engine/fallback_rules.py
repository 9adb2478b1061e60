"""Rules made for one call: a parameter expanded to every sample, and any other function, one sample at a time."""

import abc
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from unlearnkit.data.batches import map_tensors, tensors
from unlearnkit.importance.fisher.engine.call_plan import UnprovenError, results
from unlearnkit.importance.fisher.engine.interceptor import Seen, in_place
from unlearnkit.importance.fisher.engine.kernel import out_of_memory
from unlearnkit.importance.fisher.engine.per_sample_fallback import QUIET
from unlearnkit.importance.fisher.engine.rule import Call, Rule, name_of

_PLACE = torch.empty(0)  # stands for a tensor among the arguments of a call
_EXPANDING: frozenset[Callable[..., Any]] = frozenset(
    {Tensor.expand, Tensor.expand_as, Tensor.repeat, Tensor.tile, torch.tile, torch.broadcast_to, Tensor.broadcast_to}
)


def expansion(function: Callable[..., Any], theta: Tensor, y: Any, samples: int) -> Rule | None:
    """Find the rule of a call whose result is one copy of a parameter per sample."""
    if function not in _EXPANDING or not isinstance(y, Tensor) or samples == 1:
        return None
    shape, seen = tuple(theta.shape), tuple(y.shape)
    if seen[0] == samples and _spread(theta, y.dim(), seen[1:]) is not None:
        return ExpandRule()
    if theta.dim() and seen == (samples * shape[0], *shape[1:]):
        return RepeatRule()
    if theta.dim() > 1 and shape[1] == 1 and seen == (shape[0], samples, *shape[2:]):
        return ExpandSecondRule()
    return None


def _spread(theta: Tensor, dims: int, over: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that θ has beside the samples, if it broadcasts to the shape of one sample."""
    shape = tuple(theta.shape)
    if len(shape) >= dims and shape[0] != 1:
        return None
    own = (1,) * (dims - 1 - len(shape)) + shape[max(0, len(shape) - dims + 1) :]
    return own if all(size in {1, wide} for size, wide in zip(own, over, strict=True)) else None


class _Expansion(Rule):
    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()

    @final
    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        # Options, so that several uses are not taken for one use with more rows.
        return Call(weights={"theta": args[0] if args else kwargs.get("input")}, options="one per sample")


@final
class ExpandRule(_Expansion):
    """y_n = θ for every sample n, so ∂ℓ_n/∂θ = g_n."""

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        theta = call.weights[role]
        shape = _spread(theta, g.dim() - 1, tuple(g.shape[2:])) if theta is not None else None
        assert shape is not None, "as when the rule was chosen"
        found: Tensor = g[:, 0].sum_to_size(len(g), *shape)
        return found


@final
class RepeatRule(_Expansion):
    """The rows of θ once for every sample, all in dimension 0."""

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        del role, call
        return g


@final
class ExpandSecondRule(_Expansion):
    """y_ln = θ_l for every sample n, which stands in dimension 1 (the first state of a recurrent layer)."""

    free_rows: ClassVar[bool] = True

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        del role, call
        return g


class Rerun(Rule):
    """∂ℓ_n/∂θ = (∂f(x_n, θ)/∂θ)ᵀ g_n, by running f again under `torch.vmap`, or else on each sample."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    converts: ClassVar[bool] = False

    def __init__(self, seen: Seen, rows: int) -> None:
        self._function, self._rows = seen.function, rows
        if in_place(seen.function):
            raise UnprovenError(f"{'/'.join(seen.names)}: used in place by a function that no rule covers")
        self.alone = False
        """Whether `torch.vmap` failed, so that each sample is run by itself."""
        tracked = {id(t) for t in seen.tracked}
        self._weights = [id(t) in tracked for t in seen.tensors]
        self._axes = [None if id(t) in tracked else self.axis(t) for t in seen.tensors]

    @abc.abstractmethod
    def axis(self, t: Tensor) -> int | None:
        """Find the dimension of an argument in which the samples stand; None where it is the same for all."""

    @final
    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        found = list(tensors((args, kwargs)))
        template = map_tensors((args, kwargs), lambda _: _PLACE)
        if len(found) != len(self._axes):
            return None
        weights = {f"{i}": t for i, (t, mine) in enumerate(zip(found, self._weights, strict=True)) if mine}
        placed = list(zip(found, self._axes, strict=True))
        saved = tuple(t.movedim(axis, 0) for t, axis in placed if axis is not None)
        fixed = [None if axis is not None else t.detach() for t, axis in placed]
        return Call(weights=weights, saved=saved, options=(template, fixed))

    @final
    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Differentiate each sample. Further results' gradients stand behind the saved arguments."""
        count, weight = sum(axis is not None for axis in self._axes), call.options[1][int(role)]
        data, gradients = call.saved[:count], [g, *call.saved[count:]]
        wanted = [i for i, g_t in enumerate(gradients) if g_t[0].numel()]
        chosen = [gradients[i] for i in wanted]

        def run(weight: Tensor, data: tuple[Tensor, ...]) -> list[Tensor]:
            found = results(self._run(call, data, {int(role): weight}))
            return [found[i] for i in wanted]

        def shaped(ys: list[Tensor], gradients: Iterable[Tensor]) -> list[Tensor]:
            return [g_t.to(y.dtype).reshape(y.shape) for y, g_t in zip(ys, gradients, strict=True)]

        def one(data: tuple[Tensor, ...], gradients: list[Tensor]) -> Tensor:
            ys, back = torch.func.vjp(lambda weight: run(weight, data), weight)[:2]
            found: Tensor = back(shaped(ys, gradients))[0]
            return found

        if not self.alone:
            try:
                with QUIET:
                    return torch.vmap(one)(data, chosen)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                if out_of_memory(error):
                    raise
                self.alone = True  # a function that vmap does not know
        found, leaf = list[Tensor](), weight.detach().requires_grad_()
        for n in range(len(g)):
            with torch.enable_grad():
                ys = run(leaf, tuple(t[n] for t in data))
                gs = shaped(ys, [g_t[n] for g_t in chosen])
                product = sum(((y * g_t).sum() for y, g_t in zip(ys, gs, strict=True)), 0 * leaf.sum())
            found += torch.autograd.grad(product, leaf)
        return torch.stack(found)

    def _run(self, call: Call, data: tuple[Tensor, ...], weights: dict[int, Tensor]) -> Any:
        template, fixed = call.options
        mine = iter(data)
        values = [
            next(mine).movedim(0, axis) if axis is not None else weights.get(i, t)
            for i, (t, axis) in enumerate(zip(fixed, self._axes, strict=True))
        ]
        rest = iter(values)
        args, kwargs = map_tensors(template, lambda _: next(rest))
        return self._function(*args, **kwargs)


@final
class AnyFunction(Rerun):
    """A function with one result, whose dimension 0 is that of all arguments that differ from sample to sample."""

    def axis(self, t: Tensor) -> int | None:
        return 0 if t.dim() and t.shape[0] == self._rows else None


@final
class SeveralResults(Rerun):
    """A function whose results and arguments have their samples in dimension 0 or 1, each in a place of its own."""

    free_rows: ClassVar[bool] = True
    moves: ClassVar[bool] = True

    def axis(self, t: Tensor) -> int | None:
        """Take dimension 0 or 1, whichever has one entry per sample; no guess, which could crash unchecked code."""
        found = [axis for axis, size in enumerate(t.shape[:2]) if size == self._rows]
        if len(found) > 1:
            raise UnprovenError(f"{name_of(self._function)}: in which dimension its samples stand cannot be told")
        return found[0] if found else None
