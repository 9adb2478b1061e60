"""Importances on disk: measured once, kept by group, and made smaller with every request."""

from unlearnkit.resuming import estimate_resumable
from unlearnkit.store.algebra import Cancellation, difference, summed
from unlearnkit.store.manifest import Edit, StoreManifest
from unlearnkit.store.passes import fill
from unlearnkit.store.reading import on_disk
from unlearnkit.store.staleness import Staleness
from unlearnkit.store.store import ImportanceStore

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
