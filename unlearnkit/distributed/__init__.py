"""Work that several processes of torch.distributed share, and tensors that are sharded over them."""

from unlearnkit.distributed.collectives import (
    Shared,
    all_gather,
    barrier,
    map_over_ranks,
    map_shared,
    raise_on_all_ranks,
)
from unlearnkit.distributed.ranks import Ranks, alone, joined, own_device
from unlearnkit.distributed.sharded_tensors import full_tensor, is_sharded, local, reshard

__all__ = [
    "Ranks",
    "Shared",
    "all_gather",
    "alone",
    "barrier",
    "full_tensor",
    "is_sharded",
    "joined",
    "local",
    "map_over_ranks",
    "map_shared",
    "own_device",
    "raise_on_all_ranks",
    "reshard",
]
