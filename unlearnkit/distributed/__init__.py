"""Work that several processes of torch.distributed share, and tensors that are sharded over them."""

from unlearnkit.distributed.collectives import (
    Ranks,
    Shared,
    all_gather,
    alone,
    joined,
    map_over_ranks,
    raise_on_all_ranks,
)

__all__ = ["Ranks", "Shared", "all_gather", "alone", "joined", "map_over_ranks", "raise_on_all_ranks"]
