"""Squared gradients of a model that is sharded over processes: totals lie where the pieces of the weights lie."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, take
from unlearnkit.distributed.sharded_tensors import fsdp_modules, is_sharded, local, placement, shard_like
from unlearnkit.importance.estimator import Accumulator
from unlearnkit.importance.fisher.engine.per_sample_fallback import refuse_batch_statistics
from unlearnkit.importance.fisher.engine.totals import add_exactly
from unlearnkit.importance.importance import Importance
from unlearnkit.models.objective import Objective, check_losses
from unlearnkit.models.parameters import trainable, wide
from unlearnkit.utils.errors import UnsupportedModelError

Receive = Callable[[str, Tensor], None]
"""Takes a parameter's name and a gradient as autograd made it."""
Terms = Callable[[int], Iterable[tuple[Tensor, float]]]
"""For a batch of so many samples: the factor of every sample's loss, and that of the squared gradient; one per term."""


@final
class Leaves:
    """The tensors whose gradients autograd finds for the parameters of a sharded model.

    With FSDP (``fully_shard``) a layer's parameters are gathered for its forward and its backward pass: ordinary
    tensors, the same objects every time. Processes see different samples there; gradients are read as they are made,
    layer by layer, and what is made of them is sent to the pieces at once, so that no process holds more than a layer
    or two. Nothing is left for FSDP's own reduction, and so its averaging and its dtypes do not matter.

    Other sharded models (tensor parallel) compute on the pieces; all processes see the same samples.
    """

    def __init__(self, model: nn.Module, named: Mapping[str, nn.Parameter]) -> None:
        self._named = dict(named)
        self.gathers = bool(fsdp_modules(model))
        self.tensors, self._owners = _gathered(model, self._named) if self.gathers else (dict(self._named), {})
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if self.gathers else (0, 1)

    def own(self, batch: Any) -> tuple[Any, slice | None]:
        """Cut this process's samples out of a batch."""
        rows = slice(self.rank, None, self.size)
        if self.rank >= batch_size(batch):
            return take(batch, slice(0, 1)), None
        return (take(batch, rows) if self.size > 1 else batch), rows

    def backward(self, losses: Tensor, weights: Tensor, receive: Receive, *, keep: bool = False) -> None:
        """Hand out the gradient of the weighted sum, parameter by parameter, as each is ready."""
        handles = [
            leaf.register_post_accumulate_grad_hook(partial(_hand_out, name, receive))  # type: ignore[no-untyped-call]
            for name, leaf in self.tensors.items()
        ]
        try:
            torch.autograd.backward(losses, weights, retain_graph=keep)
        finally:
            for handle in handles:
                handle.remove()

    def owners(self, names: Iterable[str]) -> list[Any]:
        """Return the FSDP modules that gather some parameters; none for those that are whole everywhere."""
        wanted = set(names)
        return list(dict.fromkeys(module for name, module in self._owners.items() if name in wanted))

    def piece(self, name: str, whole: Tensor) -> Tensor:
        """Add a tensor over the processes that see different samples, and return the piece that lies here."""
        parameter: Any = self._named[name]
        if not is_sharded(parameter):
            if self.gathers:
                whole = whole.clone()
                dist.all_reduce(whole)
            return whole
        if self.gathers:
            whole = _partial(whole, parameter)
        sharded: Any = whole
        return local(sharded.redistribute(placements=parameter.placements))

    def squares(self, name: str, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        """Square a gradient of one sample and return the piece that lies here, added over processes."""
        if self.gathers:
            return self.piece(name, gradient.to(dtype).square())
        return self.piece(name, gradient).to(dtype).square()

    def zeros(self, name: str, dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(local(self._named[name]), dtype=dtype)

    def spread(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: shard_like(piece, self._named[name]) for name, piece in pieces.items()}


def _hand_out(name: str, receive: Receive, leaf: Tensor) -> None:
    gradient, leaf.grad = leaf.grad, None
    assert gradient is not None, "the hook runs after a gradient was accumulated"
    receive(name, gradient)


def _partial(mine: Tensor, parameter: Any) -> Any:
    """Take a tensor of every process as a term of one sum."""
    from torch.distributed.tensor import DTensor, Partial  # noqa: PLC0415 - it is there: the parameter is one

    mesh = parameter.device_mesh
    terms = [Partial()] * mesh.ndim
    # Contiguous, as `from_local` must be told what the strides are, and redistribution takes that at its word.
    mine = mine.contiguous()
    return DTensor.from_local(mine, mesh, terms, run_check=False, shape=mine.shape, stride=mine.stride())


def _gathered(model: nn.Module, named: Mapping[str, nn.Parameter]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Find the tensors that FSDP gathers each layer into, one layer at a time, and the layer of each."""
    names = {id(p): name for name, p in named.items()}
    found: dict[str, Tensor] = {name: p for name, p in named.items() if not is_sharded(p)}
    owners: dict[str, Any] = {}
    for module in fsdp_modules(model).values():
        held = [(m, key, id(p)) for m in module.modules() for key, p in m.named_parameters(recurse=False)]
        module.unshard()
        for m, key, which in held:
            name, now = names.get(which), getattr(m, key)
            if name is not None and now is not named[name]:
                found[name], owners[name] = now, module
        module.reshard()
        _check_the_same(module, [(m, key, found[names[which]]) for m, key, which in held if names.get(which) in owners])
    problems = [f"{name}: {placement(named[name])}" for name in named if name not in found or is_sharded(found[name])]
    if problems:
        raise UnsupportedModelError(
            "expected every sharded parameter to be gathered by FSDP (fully_shard) for its layer, saw others beside "
            f"it: {'; '.join(problems)}. FSDP together with tensor parallelism is not supported"
        )
    return {name: found[name] for name in named}, owners


def _check_the_same(module: Any, gathered: list[tuple[nn.Module, str, Tensor]]) -> None:
    """Refuse a layer that FSDP gathers into new tensors each time: its gradients would be missed."""
    mine = [(m, key, tensor) for m, key, tensor in gathered if getattr(m, key) is not tensor]
    module.unshard()
    others = [key for m, key, tensor in mine if getattr(m, key) is not tensor and not is_sharded(getattr(m, key))]
    module.reshard()
    if others:
        raise UnsupportedModelError(
            f"expected FSDP to gather a layer into the same tensors each time, saw new ones for {', '.join(others)}: "
            "an extension of FSDP's gathering, or a version of torch, that is not supported"
        )


@final
class SquaredSums(Accumulator):
    """Σ_b Σ_t c_t (∂/∂θ Σ_{i∈b} w_ti ℓ_i)²: batch gradients are summed over all processes, then squared."""

    def __init__(self, model: nn.Module, objective: Objective, *, terms: Terms, counted: Callable[[int], int]) -> None:
        refuse_batch_statistics(model)
        self._model, self._objective, self._terms, self._counted = model, objective, terms, counted
        named = trainable(model)
        self._leaves = Leaves(model, named)
        self._totals = {name: self._leaves.zeros(name, wide(p.dtype)) for name, p in named.items()}
        self._count = 0

    def add(self, batch: Any) -> None:
        """Add one batch, the same in every process."""
        size = batch_size(batch)
        own, rows = self._leaves.own(batch)
        losses = check_losses(self._objective.losses(self._model, own), own, objective=self._objective)
        terms = list(self._terms(size))
        for i, (weights, factor) in enumerate(terms):
            mine = (weights[rows] if rows is not None else torch.zeros(1)).to(losses.device, losses.dtype)
            self._square(losses, mine, factor, keep=i + 1 < len(terms), real=rows is not None)
        self._count += self._counted(size)

    def _square(self, losses: Tensor, weights: Tensor, factor: float, *, keep: bool, real: bool) -> None:
        def receive(name: str, gradient: Tensor) -> None:
            total = self._totals[name]
            g = self._leaves.piece(name, real_part(gradient, real=real).to(total.dtype))
            total.addcmul_(g, g, value=factor)

        self._leaves.backward(losses, weights, receive, keep=keep)

    def result(self) -> Importance:
        return Importance(totals=self._leaves.spread(self._totals), count=self._count)

    def differentiated(self) -> Mapping[str, Tensor] | None:
        return self._leaves.tensors


@final
class PieceTotals:
    """Running totals where the pieces of the weights lie."""

    def __init__(
        self, leaves: Leaves, named: Mapping[str, nn.Parameter], *, double: bool, compensated: bool = False
    ) -> None:
        self._leaves = leaves
        self._totals = {
            name: leaves.zeros(name, torch.float64 if double else wide(p.dtype)) for name, p in named.items()
        }
        self._lost = {name: torch.zeros_like(t) for name, t in self._totals.items() if compensated}

    def dtype(self, name: str) -> torch.dtype:
        return self._totals[name].dtype

    def add(self, name: str, piece: Tensor) -> None:
        """Add a term, which may be overwritten."""
        if name in self._lost:
            add_exactly(self._totals[name], self._lost[name], piece.to(self.dtype(name)))
        else:
            self._totals[name].add_(piece)

    def result(self) -> dict[str, Tensor]:
        whole = {name: t + self._lost[name] if name in self._lost else t for name, t in self._totals.items()}
        return self._leaves.spread(whole)


@final
class SampleSquares:
    """Σ_i (∂ℓ_i/∂θ)², every process differentiating one sample at a time: exact for any model."""

    def __init__(self, model: nn.Module, objective: Objective, leaves: Leaves) -> None:
        self._model, self._objective, self._leaves = model, objective, leaves

    def hand_out(self, batch: Any, dtype: Callable[[str], torch.dtype], receive: Receive) -> Tensor:
        """Hand out the squares of all samples of a batch, the same batch in every process, as pieces."""
        losses = []
        for start in range(0, batch_size(batch), self._leaves.size):
            own, rows = self._leaves.own(take(batch, slice(start, start + self._leaves.size)))
            loss = self._one(own, dtype, receive, real=rows is not None)
            losses += [loss] if rows is not None else []
        return torch.cat(losses) if losses else loss[:0]

    def _one(self, one: Any, dtype: Callable[[str], torch.dtype], receive: Receive, *, real: bool) -> Tensor:
        def square(name: str, gradient: Tensor) -> None:
            receive(name, self._leaves.squares(name, real_part(gradient, real=real), dtype(name)))

        losses = check_losses(self._objective.losses(self._model, one), one, objective=self._objective)
        self._leaves.backward(losses, torch.full_like(losses, float(real)), square)
        return losses.detach()


def real_part(gradient: Tensor, *, real: bool) -> Tensor:
    """Zeros for a padding sample, whose gradient may be infinite."""
    return gradient if real else torch.zeros_like(gradient)
