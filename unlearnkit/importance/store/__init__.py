"""Importances on disk: measured once, kept by group, and made smaller with every request."""

from unlearnkit.importance.resumable import estimate_resumable
from unlearnkit.importance.store.algebra import Cancellation, difference, summed
from unlearnkit.importance.store.manifest import Edit, StoreManifest
from unlearnkit.importance.store.passes import fill
from unlearnkit.importance.store.reading import on_disk
from unlearnkit.importance.store.staleness import Staleness
from unlearnkit.importance.store.store import ImportanceStore

__all__ = [
    "Cancellation",
    "Edit",
    "ImportanceStore",
    "Staleness",
    "StoreManifest",
    "difference",
    "estimate_resumable",
    "fill",
    "on_disk",
    "summed",
]
