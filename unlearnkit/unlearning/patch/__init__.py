"""An edit as a file of its own: which weights, by which factors, and what they were."""

from unlearnkit.unlearning.patch.edit import Patch
from unlearnkit.unlearning.patch.tensor import TensorPatch

__all__ = ["Patch", "TensorPatch"]
