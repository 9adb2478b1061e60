"""RMU: steer the hidden activations of the forget set to a random direction, and keep those of the retain set."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    ConfigurationError,
    Need,
    TrainingUnlearner,
    Unlearner,
    UnlearningInputs,
    hookimpl,
    option,
)
from unlearnkit.unlearning import EpochConfig, teacher_of


@final
@attrs.frozen(kw_only=True)
class Rmu(TrainingUnlearner):
    """Minimise mean |h_θ(x_f) − c·u|² over D_f + α·mean |h_θ(x_r) − h_o(x_r)|² over D_r, h the output of one layer.

    u is a random direction of length 1 with positive parts, from the seed, h_o that of the original model, a frozen
    copy in eval mode. Both means are over samples, tokens without padding, and features: the second dimension of
    four, else the last one. Weights behind the layer do not change; say which before it may with ``only=`` of
    `unlearnkit.Pipeline`, ``("*.layers.[5-7].mlp.down_proj.*",)`` as in the paper, say. Each step takes one batch of
    the retain set and one of the forget set, which starts again when it is used up. Eval mode by default.

    Good for: texts about a subject, without labels. The defaults change little: choose c a few times the length of h,
    and α small enough that the forgotten activations move (tune both). On the digits the last layer of features works.

    Source: Li et al. 2024 (The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning), the section on
    RMU; the means over features, c = 6.5 and layer 7 of 32 from the authors' code, whose α is 1200.

    Examples:
        >>> model, x = nn.Linear(2, 2), torch.eye(2)
        >>> forget, retain = [(x[:1], torch.tensor([0]))], [(x[1:], torch.tensor([1]))]
        >>> kept = model(x[1:])
        >>> method = Rmu(layer="", c=3.0, alpha=1.0, epochs=800, learning_rate=0.03)
        >>> _ = method.unlearn(model, UnlearningInputs(forget_data=forget, retain_data=retain))
        >>> round(model(x[:1]).norm().item(), 2), torch.allclose(model(x[1:]), kept, atol=1e-2)
        (3.0, True)
    """

    name: ClassVar[str] = "rmu"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})
    batches_per_step: ClassVar[int] = 2

    layer: str = option(
        "auto", doc="name or glob of the module with output h; auto: of the longest sequence, a third of the way in"
    )
    c: float = option(6.5, symbol="c", above=0.0, doc="length that h is steered to", search=(1.0, 100.0))
    alpha: float = option(100.0, symbol="α", at_least=0.0, doc="weight of the retain activations", search=(1.0, 2000.0))
    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size", search=(1e-5, 1e-2))
    mode: str = option("eval", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:
        original, layer = teacher_of(model), layer_of(model, self.layer)
        generator = torch.Generator().manual_seed(inputs.seed)
        direction: list[Tensor] = []  # drawn when the first batch shows how many features there are

        def hidden(some_model: nn.Module, batch: Any) -> Tensor:
            return _output_of(some_model, layer, batch, inputs)

        def loss(student: nn.Module, batches: Any) -> Tensor:
            retain, forget = batches
            with torch.no_grad():
                kept = hidden(original, retain)
            if not direction:
                drawn = torch.rand(kept.shape[-1], generator=generator, dtype=torch.float64)
                direction.append((self.c * drawn / drawn.norm()).to(kept))
            steered = _mean((hidden(student, forget) - direction[0]).square(), inputs.objective.token_mask(forget))
            moved = _mean((hidden(student, retain) - kept).square(), inputs.objective.token_mask(retain))
            return steered + self.alpha * moved

        return self.paired_epochs(inputs, loss)


def layer_of(model: nn.Module, wanted: str) -> str:
    """Return the name of the one module that a name or glob matches; for "auto" see the option."""
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    if wanted != "auto":
        found = [name for name in names.values() if fnmatchcase(name, wanted)]
        if len(found) != 1:
            some = ", ".join(map(repr, found[:5] or [*names.values()][:9]))
            raise ConfigurationError(
                f"rmu: expected a layer that is one module of {type(model).__name__}, saw {wanted!r}, which matches "
                f"{len(found)}: write the name of one, such as {some}"
            )
        return found[0]
    sequences = [m for m in names if isinstance(m, nn.Sequential | nn.ModuleList)]
    blocks = max(([child for child in one if _trains(child)] for one in sequences), key=len, default=[])
    blocks = blocks or [m for m in names if any(p.requires_grad for p in m.parameters(recurse=False))]
    return names[blocks[len(blocks) // 3]]


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _output_of(model: nn.Module, layer: str, batch: Any, inputs: UnlearningInputs) -> Tensor:
    """Run a model on a batch; return what a layer returned, or the first part of it, features last."""
    seen: list[Any] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        inputs.objective.losses(model, batch)
    finally:
        handle.remove()
    found = seen[-1] if seen else None
    found = found[0] if isinstance(found, tuple | list) else found
    if not isinstance(found, Tensor) or found.dim() < 2:
        raise ConfigurationError(
            f"rmu: expected a layer whose output is a tensor (batch, …, features), saw {type(found).__name__} of "
            f"{layer!r}: name another with layer="
        )
    return found.movedim(1, -1) if found.dim() == 4 else found


def _mean(errors: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over samples, positions that the mask leaves, and features."""
    each = errors.mean(-1)
    if mask is None or mask.shape != each.shape:
        return each.flatten(1).mean(1).mean() if each.dim() > 1 else each.mean()
    return ((each * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [Rmu]
