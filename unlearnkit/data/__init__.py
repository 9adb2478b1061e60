"""Data sets with labels, what to forget of them, and loaders that always yield the same batches."""

from unlearnkit.data.batches import tensors
from unlearnkit.data.cifar100 import cifar100
from unlearnkit.data.corruption import Corruption, KnownCorrupted
from unlearnkit.data.digits import digits
from unlearnkit.data.hf_datasets import hf_dataset
from unlearnkit.data.image_folder import image_folder
from unlearnkit.data.labelled import DataBundle, ForgetSplit, LabelledImages, forget_split
from unlearnkit.data.loaders import Interleaved, Paired, loader, reshuffled
from unlearnkit.data.splits import ByClass, ByIndex, BySubclass, ForgetSpec, Split
from unlearnkit.data.transforms import DeviceTransform, imagenet_transform

__all__ = [
    "ByClass",
    "ByIndex",
    "BySubclass",
    "Corruption",
    "DataBundle",
    "DeviceTransform",
    "ForgetSpec",
    "ForgetSplit",
    "Interleaved",
    "KnownCorrupted",
    "LabelledImages",
    "Paired",
    "Split",
    "cifar100",
    "digits",
    "forget_split",
    "hf_dataset",
    "image_folder",
    "imagenet_transform",
    "loader",
    "reshuffled",
    "tensors",
]
