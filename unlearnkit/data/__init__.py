"""Data sets with labels, what to forget of them, and loaders that always yield the same batches."""

from unlearnkit.data.cifar100 import cifar100
from unlearnkit.data.digits import digits
from unlearnkit.data.image_folder import image_folder
from unlearnkit.data.labelled import DataBundle, ForgetSplit, LabelledImages, forget_split
from unlearnkit.data.loaders import loader
from unlearnkit.data.mixing import Interleaved, Paired, reshuffled
from unlearnkit.data.partition import Split
from unlearnkit.data.splits import ByClass, ByIndex, BySubclass, ForgetSpec
from unlearnkit.data.transforms import DeviceTransform, imagenet_transform

__all__ = [
    "ByClass",
    "ByIndex",
    "BySubclass",
    "DataBundle",
    "DeviceTransform",
    "ForgetSpec",
    "ForgetSplit",
    "Interleaved",
    "LabelledImages",
    "Paired",
    "Split",
    "cifar100",
    "digits",
    "forget_split",
    "image_folder",
    "imagenet_transform",
    "loader",
    "reshuffled",
]
