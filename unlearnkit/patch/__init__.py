"""An edit as a file of its own: which weights, by which factors, and what they were."""

from unlearnkit.patch.edit import Patch
from unlearnkit.patch.tensor import TensorPatch

__all__ = ["Patch", "TensorPatch"]
