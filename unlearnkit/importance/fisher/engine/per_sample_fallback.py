"""Squared per-sample gradients of any model, without rules, and the comparison of the engine's totals with them.

`torch.func` in chunks, or one sample at a time where that cannot work.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from unlearnkit.data.batches import batch_size, has_values, map_tensors, take, tensors
from unlearnkit.importance.fisher.engine.call_plan import UnprovenError, ZeroGradientsError, coarsest
from unlearnkit.importance.fisher.engine.interceptor import ProcessWide
from unlearnkit.importance.fisher.engine.kernel import out_of_memory
from unlearnkit.models.norm_gradients import norm_gradient_fix
from unlearnkit.models.objective import Autocast, Objective, check_losses
from unlearnkit.models.parameters import dense, trainable, wide
from unlearnkit.utils.errors import UnlearnKitError, UnsupportedModelError

_EXACT = 1 << 14  # elements up to which a picture is the tensor itself
_WIDTH = 64  # elements that become one
_AT_A_TIME = 1 << 18  # elements: what is made on the way is small
# How far totals of a few samples may be from those of one sample at a time, relative to their sum; what is wrong in
# structure is wrong by a factor, and what is rounding is far below. Second: gradients below this share of the largest
# are rounding errors themselves (the bias of attention's keys, a bias before a norm), squared.
_TOLERANCES = {
    torch.float64: (1e-6, 1e-22),
    torch.float32: (5e-3, 1e-9),
    torch.bfloat16: (0.3, 1e-4),
    torch.float16: (0.2, 1e-5),
}
# How far a sample's loss in a whole batch may be from its loss alone: relative, and in nats.
_SAME_LOSS = {
    torch.float64: (1e-6, 1e-9),
    torch.float32: (1e-2, 1e-4),
    torch.bfloat16: (0.3, 0.3),
    torch.float16: (0.3, 0.1),
}
_LARGEST_CHUNK = 16  # above it vmap over convolutions falls off a cliff on CPUs and gains nothing elsewhere

Receive = Callable[[str, Tensor], None]
"""Takes a parameter's name and the gradients of some samples, shape (n, *shape), in the parameter's dtype."""


@final
class SquaredGradients:
    """The gradients of every sample of a batch, by `torch.func` where it gives the same as one sample at a time."""

    def __init__(self, model: nn.Module, objective: Objective, *, chunk: int = 0, memory: int = 512 << 20) -> None:
        refuse_batch_statistics(model)
        self._model: nn.Module = getattr(model, "_orig_mod", model)  # torch.func cannot look into compiled code
        self._objective = objective
        self._compared = False
        self._reenters = False
        self._order = norm_gradient_fix(self._model)
        self._named = trainable(self._model)
        per_sample = sum(p.numel() * max(4, p.element_size()) for p in self._named.values())
        # The gradients of one sample are what a plain pass holds too; each further one is held with its square.
        self._chunk = chunk or min(_LARGEST_CHUNK, 1 + memory // max(1, 2 * per_sample))
        self._alone = self._chunk == 1

    def add(self, batch: Any, receive: Receive) -> None:
        """Pass the gradients of every sample to `receive`, in chunks where `torch.func` works."""
        done = 0
        # torch.func would see one sample's tensors beside the plain values of all.
        if not self._alone and batch_size(batch) > 1 and not has_values(batch):
            try:
                self._compare(batch)
                for rows, gradients in self._chunks(batch):
                    for name, g in gradients.items():
                        receive(name, g)
                    done = rows.stop
            except (UnlearnKitError, torch.OutOfMemoryError):
                raise
            except ZeroGradientsError:
                pass  # compared again with the next batch
            except (RuntimeError, ValueError, NotImplementedError, UnprovenError) as error:
                if out_of_memory(error):  # on a CPU it is a RuntimeError; part of a chunk may have been added
                    raise
                # Which of torch's errors mean "vmap cannot" is not documented; a fault of the model fails again below.
                self._alone = True
        if done < batch_size(batch):
            self.each(take(batch, slice(done, None)), receive)

    def each(self, batch: Any, receive: Receive, *, names: Collection[str] | None = None) -> Tensor:
        """Pass the gradients of every sample to `receive`, one sample at a time; return the losses."""
        losses, wanted = [], [name for name in self._named if names is None or name in names]
        for i in range(batch_size(batch)):
            loss, found = self._one(take(batch, slice(i, i + 1)), [self._named[name] for name in wanted])
            for name in reversed(wanted):
                g = found.pop()  # not kept: two samples' gradients would be twice the weights
                if g is not None:
                    receive(name, g.unsqueeze(0))
                del g
            losses.append(loss)
        return torch.cat(losses)

    def _one(self, one: Any, parameters: list[nn.Parameter]) -> tuple[Tensor, list[Tensor | None]]:
        try:
            with self._order():
                loss = check_losses(self._objective.losses(self._model, one), one, objective=self._objective)
        except Exception as error:
            if out_of_memory(error) or not self._takes(map_tensors(one, lambda t: torch.cat([t, t]))):
                raise
            raise UnsupportedModelError(
                f"expected a model that takes one sample as well as several, saw {type(self._model).__name__} fail on "
                f"a batch of one ({error}): a squeeze() without a dimension? use flatten(1) or squeeze(dim)"
            ) from error
        if self._reenters:
            return loss.detach(), _by_backward(loss, parameters)
        try:
            found = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            self._reenters = True  # such checkpoints work with .backward() alone
            return self._one(one, parameters)
        return loss.detach(), [dense(g) for g in found]

    def _takes(self, batch: Any) -> bool:
        with suppress(Exception), torch.no_grad():
            check_losses(self._objective.losses(self._model, batch), batch, objective=self._objective)
            return True
        return False

    def describe(self) -> str:
        return "one sample at a time" if self._alone else f"torch.func on {self._chunk} samples at a time"

    def _compare(self, batch: Any) -> None:
        """Compare with one sample at a time, once: some operations give other gradients under vmap, silently."""
        if self._compared:
            return
        few, comparison = take(batch, slice(0, 2)), Comparison()
        for _, gradients in self._chunks(few):
            for name, g in gradients.items():
                comparison.expect(name, g.to(wide(g.dtype)).square().sum(0))
        self.each(few, comparison.receive)
        comparison.verdict(self._precision())
        self._compared = True

    def _precision(self) -> torch.dtype:
        dtypes = {p.dtype for p in self._named.values()}
        if isinstance(self._objective, Autocast):
            dtypes.add(torch.bfloat16)
        return coarsest(dtypes)

    def _chunks(self, batch: Any) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Differentiate a chunk of samples at a time with `torch.func`."""
        losses = _Losses(self._model, self._objective)
        weights = {f"model.{name}": p.detach() for name, p in self._named.items()}

        def loss(weights: dict[str, Tensor], *sample: Tensor) -> Tensor:
            one = _rebuild(batch, [t.unsqueeze(0) for t in sample])
            value: Tensor = functional_call(losses, weights, (one,))
            return value.squeeze(0)

        columns = list(tensors(batch))
        gradients: Callable[..., dict[str, Tensor]] = vmap(
            grad(loss), in_dims=(None, *(0 for _ in columns)), randomness="different"
        )
        for start in range(0, batch_size(batch), self._chunk):
            rows = slice(start, min(start + self._chunk, batch_size(batch)))
            with QUIET:
                found = gradients(weights, *(t[rows] for t in columns))
            yield rows, {name.removeprefix("model."): g for name, g in found.items()}


def _by_backward(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """Return the gradients that ``backward`` leaves in the parameters, which keep those that they had."""
    held = [p.grad for p in parameters]
    try:
        for p in parameters:
            p.grad = None
        torch.autograd.backward(loss.sum())
        return [dense(p.grad) for p in parameters]
    finally:
        for p, g in zip(parameters, held, strict=True):
            p.grad = g


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse a model that mixes the samples of a batch: there is no per-sample gradient."""
    kind = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - the only common parent of BatchNorm1d, 2d and 3d
    mixing = [
        name
        for name, module in model.named_modules()
        if isinstance(module, kind) and (module.running_mean is None or module.training)
    ]
    if mixing:
        raise UnsupportedModelError(
            f"expected samples that do not mix, saw BatchNorm on batch statistics in {', '.join(mixing)}: "
            "per-sample gradients do not exist there; use eval mode and track_running_stats=True, or GroupNorm"
        )


@final
class _Losses(nn.Module):
    """The objective as a module, so that `functional_call` can swap the weights of the model inside it."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective
        self.training = False

    def forward(self, batch: Any) -> Tensor:
        return check_losses(self._objective.losses(self.model, batch), batch, objective=self._objective)


@contextmanager
def _without_remarks() -> Iterator[None]:
    _remark(False)
    try:
        yield
    finally:
        _remark(True)


def _remark(wanted: bool) -> None:
    torch._C._functorch._set_vmap_fallback_warning_enabled(wanted)  # type: ignore[attr-defined]  # noqa: SLF001 - torch's only switch


QUIET = ProcessWide(_without_remarks)


def _rebuild(batch: Any, columns: list[Tensor]) -> Any:
    rest: Iterator[Tensor] = iter(columns)
    return map_tensors(batch, lambda _: next(rest))


@final
class Comparison:
    """Compares the engine's totals of a few samples with those of one sample at a time, storing neither.

    Of parameters that are not small only pictures are compared, in which 64 neighbours are one number; see `projected`.
    """

    def __init__(self, totals: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        self._rest: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._numels: dict[str, int] = {}
        for name, total in totals.items():
            self.expect(name, total)

    def expect(self, name: str, total: Tensor) -> None:
        """Add the engine's total of one parameter, or a part of it."""
        picture = projected(total)
        if name not in self._rest:
            self._rest[name], self._seen[name] = torch.zeros_like(picture), torch.zeros_like(picture)
            self._sums[name], self._numels[name] = total.new_zeros(()), total.numel()
        self._rest[name].add_(picture)

    def expects(self, name: str) -> bool:
        return name in self._rest

    def receive(self, name: str, gradient: Tensor) -> None:
        """Subtract the square of one sample's gradient, shape (1, *shape)."""
        g = gradient[0].to(self._rest[name].dtype)
        self._take(name, projected(g, square=True), torch.linalg.vector_norm(g).square())

    def receive_squares(self, name: str, squares: Tensor) -> None:
        """Subtract the squares of some samples' gradients."""
        self._take(name, projected(squares), squares.sum())

    def _take(self, name: str, picture: Tensor, total: Tensor) -> None:
        self._rest[name].sub_(picture)
        self._seen[name].add_(picture)
        self._sums[name].add_(total)

    def verdict(
        self, precision: torch.dtype, *, together: Callable[[Tensor], Tensor] = lambda numbers: numbers
    ) -> None:
        """Raise `UnprovenError` where the totals differ by more than rounding, `ZeroGradientsError` where all are 0."""
        relative, share = _TOLERANCES[precision]
        device = next((total.device for total in self._sums.values()), None)
        columns = torch.tensor([self._row(name) for name in self._rest], dtype=torch.float64, device=device)
        rows = dict(zip(self._rest, together(columns).tolist(), strict=True))
        means = [total / numel for total, numel, _, _ in rows.values() if numel]
        largest = max((mean for mean in means if math.isfinite(mean)), default=0.0)
        for name, (total, numel, size, difference) in rows.items():
            if not numel or not math.isfinite(total):
                continue
            floor = share * largest * numel * (size / total if total else 1.0)
            if not difference <= relative * size + floor:
                raise UnprovenError(
                    f"{name}: the totals of {difference / max(size, 1e-300):.2g} relative difference to those of "
                    "one sample at a time"
                )
        if rows and not any(size for _, _, size, _ in rows.values()):
            raise ZeroGradientsError("samples without gradients")

    def _row(self, name: str) -> tuple[float, float, float, float]:
        """Sum of squares, element count, size of the projection, and its difference."""
        size, left = (float(t[name].abs().sum()) for t in (self._seen, self._rest))
        return float(self._sums[name]), float(self._numels[name]), size, left


def check_alone(losses: Tensor, alone: Tensor, precision: torch.dtype) -> None:
    """Compare the losses of some samples within a whole batch with their losses alone."""
    relative, nats = _SAME_LOSS[precision]
    seen, expected = losses.detach()[: len(alone)].double(), alone.double()
    apart = (seen - expected).abs() > relative * expected.abs() + nats
    if bool(apart.any()):
        raise UnprovenError("the losses, which are others within a batch than alone")


def projected(t: Tensor, *, square: bool = False) -> Tensor:
    """Add neighbours up with fixed random weights of either sign, 64 at a time; small tensors stay as they are.

    That of a sum is the sum of those of its terms. Two tensors that differ in one or in all places have different
    pictures, except by a chance that many neighbourhoods make negligible.
    """
    if t.numel() <= _EXACT:
        return t.reshape(-1).square() if square else t.reshape(-1).clone()
    weights = _weights(t.dtype, t.device)
    return torch.cat([_fold(part, weights, square=square) for part in _parts(t)])


def _parts(t: Tensor) -> Iterator[Tensor]:
    """Cut a tensor into parts of whole neighbourhoods without copying all of it."""
    if t.is_contiguous():
        t = t.view(-1)
    step = max(1, _AT_A_TIME // (t.numel() // len(t)) // _WIDTH) * _WIDTH
    return (t[at : at + step].reshape(-1) for at in range(0, len(t), step))


def _fold(flat: Tensor, weights: Tensor, *, square: bool) -> Tensor:
    whole = len(flat) // _WIDTH * _WIDTH
    body, rest = (part.square() if square else part for part in (flat[:whole], flat[whole:]))
    found = body.view(-1, _WIDTH) @ weights
    return torch.cat([found, (rest @ weights[: len(rest)]).reshape(1)]) if len(rest) else found


@cache
def _weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = 0.5 + torch.rand(_WIDTH, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (_WIDTH,), generator=generator, dtype=torch.float64) * 2 - 1
    return (sizes * signs).to(device, dtype)
