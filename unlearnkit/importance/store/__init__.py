"""Importances on disk, by group: measured once, then reduced with every request to forget."""

from unlearnkit.importance.store.fill import fill
from unlearnkit.importance.store.manifest import Edit, Staleness, StoreManifest
from unlearnkit.importance.store.shards import Cancellation, difference, on_disk, summed
from unlearnkit.importance.store.store import ImportanceStore

__all__ = [
    "Cancellation",
    "Edit",
    "ImportanceStore",
    "Staleness",
    "StoreManifest",
    "difference",
    "fill",
    "on_disk",
    "summed",
]
