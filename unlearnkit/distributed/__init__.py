"""Work shared by several processes of torch.distributed, and tensors that are sharded over them."""

from unlearnkit.distributed.collectives import Shared, agreed, for_each, in_shares, tell
from unlearnkit.distributed.ranks import Ranks, alone, joined, own_device
from unlearnkit.distributed.sharded_tensors import is_sharded, local, settle, whole

__all__ = [
    "Ranks",
    "Shared",
    "agreed",
    "alone",
    "for_each",
    "in_shares",
    "is_sharded",
    "joined",
    "local",
    "own_device",
    "settle",
    "tell",
    "whole",
]
