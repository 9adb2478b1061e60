"""A LoRA adapter for what is to be forgotten: FILA's initialisation, VILA's importance, a base that never changes."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    ConfigurationError,
    DiagonalFisher,
    EstimatorTraits,
    Importance,
    ImportanceEstimator,
    MismatchError,
    Objective,
    UnsupportedModelError,
)
from unlearnkit.importance import Accumulator
from unlearnkit.models import digest, trainable

if TYPE_CHECKING:
    from peft import PeftModel

_EDIT, _START = "forget", "start"


def forgetting_adapter(
    model: nn.Module,
    forget: Importance,
    retain: Importance,
    *,
    target_modules: str | Collection[str],
    rank: int = 8,
    epsilon: float = 1e-5,
) -> "PeftModel":
    """Add a LoRA adapter that holds the part of the weights which matters to the forget set; freeze everything else.

    For each weight W of ``target_modules``, (B₀, A₀) minimise ‖D(W − B₀A₀)‖ over all products of this rank. D is
    diagonal: D_i² = Σ_j F_f/(F_r + ε) over row i, F the means of the importances. The adapter "forget" starts as
    (B₀, A₀), and nothing else can be trained. The published code subtracts B₀A₀ from the base; here the frozen adapter
    "start", (−B₀, A₀), does, so that the base is never touched: ``model.disable_adapter()`` and ``model.unload()`` give
    back the original bit by bit. Large weights are decomposed by `torch.svd_lowrank`.

    Source: Cha et al. 2025 (Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs), FILA, with the ε of
    the published code. With two `centred_importance` it is VILA (Kim et al. 2025).

    Args:
        model: The base. peft puts the adapter into it: use what is returned.
        forget: Importance of the forget set, measured on this model.
        retain: The same of the retain set.
        target_modules: As in peft: the ends of the names of linear layers, or a pattern.
        rank: Of each of the two adapters.
        epsilon: ε, added to the mean of ``retain``.

    Raises:
        MismatchError: Importances that are not this model's, or of different kinds.
        UnsupportedModelError: A target that is no linear layer, or quantised.
    """
    problems = forget.kind_problems(retain)
    if forget.fingerprint.model not in {"", digest(model)}:
        problems.append("another model, or one that was edited since: estimate again")
    if problems:
        raise MismatchError(f"forgetting_adapter: expected importances of this model, saw {'; '.join(problems)}")
    important, others = forget.mean(), retain.mean()
    with _adapted(model, _EDIT, rank, target_modules) as adapted:
        adapted.add_adapter(_START, adapted.peft_config[_EDIT])
        for name, layer in _layers(adapted):
            if name not in important or name not in others:
                raise MismatchError(f"forgetting_adapter: expected an importance of {name}, saw none")
            ratio = _rows(layer, important[name] / (others[name] + epsilon))
            down, up = _decomposed(_rows(layer, layer.get_base_layer().weight), ratio.sum(1).sqrt(), rank)
            for adapter, sign in ((_EDIT, 1), (_START, -1)):
                layer.lora_A[adapter].weight.data.copy_(down)
                layer.lora_B[adapter].weight.data.copy_(sign * up)
    _activate(adapted)
    return adapted


def save_forgetting_adapter(model: "PeftModel", folder: str | Path) -> None:
    """Write the edit of a `forgetting_adapter` as one ordinary adapter, which `PeftModel.from_pretrained` loads.

    It has twice the rank: its product is BA − B₀A₀, what the edit adds to a weight. The model stays as it is.
    """
    model.add_weighted_adapter([_EDIT, _START], [1.0, 1.0], "default", combination_type="cat")
    try:
        model.save_pretrained(str(folder), selected_adapters=["default"])
    finally:
        model.delete_adapter("default")
        _activate(model)


def centred_importance(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    objective: Objective,
    target_modules: str | Collection[str],
    rank: int = 8,
    std: float = 0.05,
    seed: int = 0,
) -> Importance:
    """Measure importances for a `forgetting_adapter` from the gradients of a random adapter, as VILA does.

    For each factor of the adapter, I = mean g² − (mean g)² over samples: the Fisher information assumes a mean of zero,
    which it is not on data that the model did not produce. The importance of a weight is then (I_B I_A)_ij. The base
    needs no gradients. The batches are read twice; take the same rank, std and seed for both sets.

    Source: Kim et al. 2025 (Improving Fisher Information Estimation and Efficiency for LoRA-based LLM Unlearning), with
    the squares of samples where the published code has those of batches.

    Args:
        model: The base, which is as before afterwards.
        batches: As for an estimator.
        objective: How a batch becomes losses.
        target_modules: As in `forgetting_adapter`.
        rank: Of the random adapter.
        std: Its weights are drawn from N(0, std²).
        seed: Draws them.
    """
    if iter(batches) is batches:
        raise ConfigurationError("centred_importance: expected batches that can be read twice, saw an iterator")
    flags, before = {p: p.requires_grad for p in model.parameters()}, digest(model)
    try:
        with _adapted(model, "measure", rank, target_modules) as adapted:
            generator = torch.Generator().manual_seed(seed)
            for p in trainable(adapted).values():
                p.data.copy_(std * torch.randn(p.shape, generator=generator))
            squares = DiagonalFisher().estimate(adapted, batches, objective=objective)
            mean = _SquaredMean().estimate(adapted, batches, objective=objective).mean()
            factors = {name: (square - mean[name]).clamp(min=0) for name, square in squares.mean().items()}
            names = {id(p): name for name, p in trainable(adapted).items()}
            totals = {}
            for name, layer in _layers(adapted):
                down, up = (factors[names[id(part["measure"].weight)]] for part in (layer.lora_A, layer.lora_B))
                totals[name] = squares.count * _rows(layer, up @ down)
        adapted.unload()
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
    kind = attrs.evolve(
        squares.fingerprint, estimator="centred-importance", model=before, options=f"{rank=} {std=} {seed=}"
    )
    return attrs.evolve(squares, totals=totals, fingerprint=kind, relative_error=None)


@contextmanager
def _adapted(model: nn.Module, adapter: str, rank: int, targets: str | Collection[str]) -> Iterator["PeftModel"]:
    """Put a LoRA adapter into a model; take it out again if the block raises. Random numbers are as before."""
    try:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(
            "adapters need peft, which is not installed: pip install 'unlearnkit[peft]'"
        ) from error
    flags = {p: p.requires_grad for p in model.parameters()}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets if isinstance(targets, str) else list(targets))
    with torch.random.fork_rng():
        adapted = get_peft_model(model, config, adapter_name=adapter)
        try:
            yield adapted
        except BaseException:
            adapted.unload()
            for p, flag in flags.items():
                p.requires_grad_(flag)
            raise


def _layers(adapted: "PeftModel") -> Iterator[tuple[str, Any]]:
    """Yield the name of each adapted weight in the base model, and its LoRA layer."""
    for name, layer in adapted.get_base_model().named_modules():
        if hasattr(layer, "lora_A"):
            weight = layer.get_base_layer().weight
            if weight.ndim != 2 or not weight.is_floating_point() or not layer.lora_A:
                seen = f"{type(layer.get_base_layer()).__name__} of {weight.dtype}"
                raise UnsupportedModelError(f"{name}: expected a linear layer that is not quantised, saw {seen}")
            yield f"{name}.weight", layer


def _rows(layer: Any, weight: Tensor) -> Tensor:
    """Put the outputs of a layer first: GPT-2's Conv1D has them last."""
    return weight.detach().T if layer.fan_in_fan_out else weight.detach()


def _decomposed(weight: Tensor, importance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A₀ and B₀, whose product is W V Vᵀ with V the first right singular vectors of D W."""
    wide, rows = weight.float(), importance.float()
    rows = rows / rows.max() if rows.max() > 0 else torch.ones_like(rows)
    torch.manual_seed(0)  # of a random state that is put back
    _, values, basis = torch.svd_lowrank(rows[:, None] * wide, q=min(rank + 10, *wide.shape), niter=4)
    values, basis = values[:rank], basis[:, :rank]
    rounding = values[0] * max(wide.shape) * torch.finfo(torch.float32).eps
    root = torch.where(values > rounding, values, 0.0).sqrt()
    down = torch.zeros(rank, wide.shape[1], device=wide.device)
    up = torch.zeros(wide.shape[0], rank, device=wide.device)
    down[: len(root)], up[:, : len(root)] = (basis * root).T, (wide @ basis / root).nan_to_num(0, 0, 0)
    return down, up


def _activate(adapted: "PeftModel") -> None:
    """Use both adapters, and let one be trained."""
    tuner: Any = adapted.base_model
    tuner.set_adapter([_EDIT, _START])
    for name, p in adapted.named_parameters():
        p.requires_grad_(f".{_EDIT}." in name and "lora_" in name)


@final
@attrs.frozen(kw_only=True)
class _SquaredMean(ImportanceEstimator):
    """(Σ_i g_i)² over all samples, with the square of their number as count: its mean is the squared mean gradient."""

    name: ClassVar[str] = "squared-mean-gradient"
    traits: ClassVar[EstimatorTraits] = EstimatorTraits(unit="batch", leaves_weights=True)

    def accumulator(self, model: nn.Module, *, objective: Objective) -> Accumulator:
        return _Gradients(model, objective)

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        one = _Gradients(model, objective)
        one.add(batch)
        return one.result()


@final
class _Gradients(Accumulator):
    def __init__(self, model: nn.Module, objective: Objective) -> None:
        self._model, self._objective, self._count = model, objective, 0
        self._sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in trainable(model).items()}

    def add(self, batch: Any) -> None:
        losses = self._objective.losses(self._model, batch)
        self._count += len(losses)
        gradients = torch.autograd.grad(losses.sum(), list(trainable(self._model).values()))
        for total, gradient in zip(self._sums.values(), gradients, strict=True):
            total.add_(gradient)

    def result(self) -> Importance:
        return Importance(totals={name: total.square() for name, total in self._sums.items()}, count=self._count**2)
