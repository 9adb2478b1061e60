"""Diagonal Fisher information: per sample, which is the default, and of batch means, which is another quantity."""

from unlearnkit.fisher.batched import BatchedDiagonalFisher
from unlearnkit.fisher.diagonal import DiagonalFisher

__all__ = ["BatchedDiagonalFisher", "DiagonalFisher"]
