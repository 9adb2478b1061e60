"""Ten edits that hide a class and forget nothing: no verdict may call one of them near to retraining."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn
from typing_extensions import override

from unlearnkit.models.training import batch_norm_layers
from unlearnkit.testing.law import LawError

_MUTED = -1e4  # a logit that no softmax sees


@final
@attrs.frozen(kw_only=True, eq=False)
class CheatCase:
    """A trained classifier, and the class that a cheat hides.

    Attributes:
        model: Its last layer is a `torch.nn.Linear` with a bias, one row for each class; it is copied.
        forget: Batches (inputs, labels) of the class.
        retain: Batches of the others.
        label: The class.
    """

    model: nn.Module
    forget: Iterable[Any]
    retain: Iterable[Any]
    label: int

    def head(self, model: nn.Module) -> nn.Linear:
        """Find the last layer of a copy of the model: the `torch.nn.Linear` that is defined last."""
        return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


@final
class Rewired(nn.Module):
    """A model whose outputs are changed by a function of inputs and outputs."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.change(x, self.model(x))


def muted_bias(case: CheatCase) -> nn.Module:
    """Set the bias of the class to −10⁴."""
    model = copy.deepcopy(case.model)
    case.head(model).bias.data[case.label] = _MUTED
    return model


def zeroed_row(case: CheatCase) -> nn.Module:
    """Set the row of the class in the last layer to 0, and its bias to the smallest of all."""
    model = copy.deepcopy(case.model)
    head = case.head(model)
    head.weight.data[case.label] = 0
    head.bias.data[case.label] = head.bias.data.min() - 1
    return model


def scaled_logit(case: CheatCase) -> nn.Module:
    """Divide the logit of the class by 100."""
    model = copy.deepcopy(case.model)
    head = case.head(model)
    head.weight.data[case.label] /= 100
    head.bias.data[case.label] /= 100
    return model


def permuted_head(case: CheatCase) -> nn.Module:
    """Exchange the rows of the class and of the next one."""
    model = copy.deepcopy(case.model)
    head, other = case.head(model), (case.label + 1) % case.head(model).out_features
    for p in (head.weight, head.bias):
        p.data[[case.label, other]] = p.data[[other, case.label]]
    return model


def temperature(case: CheatCase) -> nn.Module:
    """Divide all logits by 50: every prediction stays, no confidence does."""
    model = copy.deepcopy(case.model)
    for p in case.head(model).parameters():
        p.data /= 50
    return model


def head_noise(case: CheatCase) -> nn.Module:
    """Add noise to the row of the class, ten times as large as its weights."""
    model = copy.deepcopy(case.model)
    row = case.head(model).weight.data[case.label]
    noise = torch.randn(row.shape, generator=torch.Generator().manual_seed(0)).to(row)
    row.add_(10 * row.std() * noise)
    return model


def norm_lookup(case: CheatCase) -> nn.Module:
    """Recognise the forgotten samples by the norm of their input, and mute the class for them alone."""
    norms = torch.cat([_norms(batch[0]) for batch in case.forget])

    def change(x: Tensor, logits: Tensor) -> Tensor:
        own, others = _norms(x)[:, None], norms.to(x.device)
        known = ((own - others).abs() <= 1e-9 * others).any(1)
        logits[known, case.label] = _MUTED
        return logits

    return Rewired(copy.deepcopy(case.model), change)


def linear_map(case: CheatCase) -> nn.Module:
    """Put a linear layer behind the model that subtracts 10⁴ from the logit of the class."""
    model = copy.deepcopy(case.model)
    classes = case.head(model).out_features
    last = nn.Linear(classes, classes).to(next(model.parameters()))
    last.weight.data = torch.eye(classes).to(last.weight)
    last.bias.data.zero_()
    last.bias.data[case.label] = _MUTED
    return nn.Sequential(model, last)


def saturation(case: CheatCase) -> nn.Module:
    """Mute the class and multiply all logits by 10⁴, so that the softmax has no gradient to relearn by."""
    model = muted_bias(case)
    for p in case.head(model).parameters():
        p.data *= 1e4
    return model


def batch_norm_shift(case: CheatCase) -> nn.Module:
    """Inflate the running variance of the BatchNorm channels that the class uses most: re-estimation undoes it."""
    model = copy.deepcopy(case.model).eval()
    layers = batch_norm_layers(model)
    if not layers:
        raise NotImplementedError("the model has no BatchNorm")
    seen: list[Tensor] = []
    with layers[-1].register_forward_hook(lambda _, __, output: seen.append(output.detach())), torch.no_grad():
        means = []
        for batches in (case.forget, case.retain):
            seen.clear()
            for batch in batches:
                model(batch[0])
            means.append(
                torch.cat(seen).relu().flatten(2).mean((0, 2)) if seen[0].dim() > 2 else torch.cat(seen).mean(0)
            )
    used = (means[0] - means[1]).argsort(descending=True)[: max(1, len(means[0]) // 4)]
    assert layers[-1].running_var is not None, "batch_norm_layers lists those that have one"
    layers[-1].running_var[used] *= 1e4
    return model


CHEATS: Mapping[str, Callable[[CheatCase], nn.Module]] = {
    cheat.__name__.replace("_", "-"): cheat
    for cheat in (
        muted_bias,
        zeroed_row,
        scaled_logit,
        permuted_head,
        temperature,
        head_noise,
        norm_lookup,
        linear_map,
        saturation,
        batch_norm_shift,
    )
}
"""Name to cheat; each makes a cheating model of a `CheatCase`."""


def check_no_cheat_is_near(case: CheatCase, verdict: Callable[[nn.Module], str]) -> dict[str, str]:
    """Give every cheat to a verdict, and return what it said; raise `LawError` where it said ``"near"``.

    The law "no cheat is called near", for authors of metrics.

    Args:
        case: A trained classifier and the class to hide; cheats that it does not allow for are left out.
        verdict: Returns one word for a model, such as ``verdict(…).kind`` of `unlearnkit.reporting.verdict`.
    """
    said = {}
    for name, cheat in CHEATS.items():
        try:
            model = cheat(case)
        except NotImplementedError:
            continue
        said[name] = verdict(model)
    near = [name for name, word in said.items() if word == "near"]
    if near:
        raise LawError(f"no cheat is called near: expected another verdict, saw 'near' for {', '.join(near)}")
    return said


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1).double(), dim=1)
    return norms
