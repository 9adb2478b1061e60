"""Reset the last blocks: fresh weights near the output, then training on the retain set."""

import copy
from collections.abc import Iterable, Iterator
from typing import ClassVar, final

import attrs
from torch import nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearnerTraits, UnlearningInputs, hookimpl, option
from unlearnkit.unlearning import EpochConfig, fresh_model

_SEQUENCE = (nn.Sequential, nn.ModuleList)


@final
@attrs.frozen(kw_only=True)
class ResetLast(TrainingUnlearner):
    """θ = (θ_1, θ_2), θ_2 the last k blocks: θ_2 ← fresh weights, then training on D_r of all weights or of θ_2 alone.

    ``train = "last"`` is EU-k of the paper and, with ``reset = false``, CF-k. Training all weights forgets more: what
    the first blocks hold of the forget set stays otherwise. Fresh weights and BatchNorm statistics come from
    ``UnlearningInputs.model_factory``. Always in train mode; BatchNorm layers that are not trained stay in eval mode.

    A block is a layer of a plain ``nn.Sequential``, a residual block of a residual network, a layer of a transformer:
    modules are counted in the order of definition; ``nn.Sequential`` and ``nn.ModuleList`` are opened, and so are
    modules that hold one of blocks. A module whose weights are all vectors, a norm layer say, belongs to the block
    before it. Where there are fewer than k blocks, all are reset. The report counts the changed weights by layer.

    Good for: whole classes and random samples: the features of the last blocks are made anew. Of a sub-class more
    remains.

    Source: Goel et al. 2022 (Towards Adversarial Evaluations for Inexact Machine Unlearning), EU-k and CF-k.

    Examples:
        >>> import torch
        >>> model, retain = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2)), [(torch.eye(1), torch.tensor([0]))]
        >>> inputs = UnlearningInputs(retain_data=retain, model_factory=lambda: copy.deepcopy(model))
        >>> [t.changed for t in ResetLast(blocks=1, train="last").unlearn(model, inputs).tensors]
        [0, 0, 4, 2]
    """

    name: ClassVar[str] = "reset-last"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RETAIN_DATA, Need.MODEL_FACTORY})
    traits: ClassVar[UnlearnerTraits] = attrs.evolve(
        TrainingUnlearner.traits, forgets={"full-class", "sub-class", "random", "corrupted"}
    )

    blocks: int = option(2, symbol="k", at_least=1, doc="how many blocks, counted from the last", search=(1, 3))
    train: str = option("all", choices=("all", "last"), doc="which weights are trained")
    reset: bool = option(True, doc="begin with fresh weights in the last blocks; false: with the old ones")
    mode: str = attrs.field(default="train", init=False)

    def student(self, model: nn.Module, inputs: UnlearningInputs) -> nn.Module:
        student = copy.deepcopy(model)
        last = self._last(student)
        if self.reset:
            last.load_state_dict(self._last(fresh_model(model, inputs)).state_dict())
        if self.train == "last":
            trained = {id(p) for p in last.parameters()}
            for p in student.parameters():
                p.requires_grad_(p.requires_grad and id(p) in trained)
        return student

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:  # noqa: ARG002
        return EpochConfig.epochs(inputs.retain_data, inputs.mean_loss, count=self.epochs)

    def _last(self, model: nn.Module) -> nn.ModuleList:
        return nn.ModuleList(part for block in blocks_of(model)[-self.blocks :] for part in block)


def blocks_of(model: nn.Module) -> list[list[nn.Module]]:
    """Return the modules of each block of a model, as `ResetLast` counts them."""
    found: list[list[nn.Module]] = []
    for part in _opened(model):
        if found and all(p.dim() < 2 for p in part.parameters()):
            found[-1].append(part)
        else:
            found.append([part])
    return found


def _opened(model: nn.Module) -> Iterator[nn.Module]:
    parts = [*filter(_trains, model.children())]
    for part in parts:
        if isinstance(part, _SEQUENCE) or len(parts) == 1 or any(map(_holds_blocks, part.modules())):
            yield from _opened(part)
        else:
            yield part
    if not parts:
        yield model


def _holds_blocks(module: nn.Module) -> bool:
    """Whether this is a sequence of modules that are no layers: residual blocks, say."""
    parts = module.children() if isinstance(module, _SEQUENCE) else ()
    return any(map(_trains, (inner for part in parts if not isinstance(part, _SEQUENCE) for inner in part.children())))


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [ResetLast]
