"""A ledger on a linear network and eighteen images in files: for tests that start many of them."""

import numpy as np
from PIL import Image
from torch import nn

from unlearnkit.data import DataBundle, image_folder

TOML = """
output = "out"
device = "cpu"
[model]
factory = "small_ledger:network"
checkpoint = "original.safetensors"
[data]
name = "image-folder"
options = { root = "data", image_size = 4 }
[training]
epochs = 3
[[method]]
name = "ssd"
options = { alpha = 1.2 }
[[method]]
name = "prune"
[deletion]
method = "ssd"
budget = 1.0
"""
CLASSES, TRAIN, TEST = ("ant", "bee", "cow"), 6, 3


def network(num_classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))


def write_images(root):
    rng = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("test", TEST)):
        for number, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (4, 4, 3)) + 70 * number
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{i}.png")


def tested_on(root, classes):
    """The same data, of which only some classes have test images."""
    data = image_folder(root, image_size=4)
    numbers = [CLASSES.index(name) for name in classes]
    rows = [i for i, number in enumerate(data.test.targets.tolist()) if number in numbers]
    return DataBundle(name="small", train=data.train, test=data.test.subset(rows))
