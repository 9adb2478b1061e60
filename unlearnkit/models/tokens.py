"""Padding and packing in batches of tokens, and the positions that follow from a mask."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from unlearnkit.utils.errors import ConfigurationError

_PACKED = ("seq_lens", "cu_seq_lens_q", "cu_seqlens", "seq_idx", "sequence_ids")


def refuse_packed(batch: Any, mask: Tensor | None) -> None:
    """Raise an error for a batch that has several texts in a row, and for a mask with holes."""
    seen = next((f"the field {key!r}" for key in _PACKED if isinstance(batch, Mapping) and key in batch), "")
    positions = positions_of(batch)
    if mask is not None and mask.dim() != 2:
        seen = f"a mask of shape {tuple(mask.shape)}"
    elif mask is not None and bool((mask > 1).any()):
        seen = "a mask that numbers the texts of a row"
    elif positions is not None and bool(_restarts(positions, mask).any()):
        seen = "position_ids that start again in a row"
    if seen:
        raise ConfigurationError(
            f"expected one text in each row of a batch, saw {seen}: a row is one sample, so texts that are packed into "
            "one would be one sample: make batches without packing, with transformers.DataCollatorWithPadding, say"
        )
    if mask is not None and bool((_starts(mask) > 1).any()):
        raise ConfigurationError(
            "expected a mask of 1 for the tokens of one text and 0 for padding before or after them, saw zeros between "
            "tokens: to leave tokens out of the loss, set their labels to -100"
        )


def positions_of(batch: Any) -> Tensor | None:
    """Return the position numbers in a batch, if it has any."""
    found = batch.get("position_ids") if isinstance(batch, Mapping) else None
    return found if isinstance(found, Tensor) and found.dim() == 2 else None


def left_padded(mask: Tensor) -> bool:
    """Whether padding comes before the tokens of some row."""
    return bool(((mask[:, 0] == 0) & (mask != 0).any(1)).any())


def refuse_left_padding(mask: Tensor, *, who: str) -> None:
    """Raise an error for padding that would shift the positions of the tokens."""
    if mask.dim() == 2 and left_padded(mask):
        raise ConfigurationError(
            f"expected padding on the right, or a field position_ids that the model takes, saw padding on the left, "
            f"which shifts the positions of {who}: tokenizer.padding_side = 'right'"
        )


def positions_from(mask: Tensor) -> Tensor:
    """Number the tokens of each row from 0.

    Examples:
        >>> import torch
        >>> positions_from(torch.tensor([[0, 1, 1], [1, 1, 0]]))
        tensor([[0, 0, 1],
                [0, 1, 1]])
    """
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def takes(model: nn.Module, name: str) -> bool:
    """Whether a model takes an argument of this name, itself or in a module that it passes it on to."""
    named = inspect.signature(model.forward).parameters
    if name in named:
        return True
    passes_on = any(p.kind is p.VAR_KEYWORD for p in named.values())
    return passes_on and any(name in inspect.signature(m.forward).parameters for m in model.modules() if m is not model)


def _restarts(positions: Tensor, mask: Tensor | None) -> Tensor:
    back = positions.diff(dim=1) < 0
    return back if mask is None else back & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)


def _starts(mask: Tensor) -> Tensor:
    """Count the runs of ones in each row."""
    kept = (mask != 0).long()
    return kept[:, 0] + (kept.diff(dim=1) == 1).sum(1)
