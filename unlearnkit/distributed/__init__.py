"""Work that several processes of torch.distributed share, and tensors that are sharded over them."""

from unlearnkit.distributed.collectives import (
    Shared,
    all_gather,
    map_over_ranks,
    raise_on_all_ranks,
)
from unlearnkit.distributed.ranks import Ranks, alone, joined

__all__ = [
    "Ranks",
    "Shared",
    "all_gather",
    "alone",
    "joined",
    "map_over_ranks",
    "raise_on_all_ranks",
]
