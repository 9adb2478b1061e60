"""Handwritten digits as JPEG files in folders named after the classes of CIFAR-10."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_images(root, *, train, test):
    """Write so many images of each class under ``root/train`` and ``root/test``."""
    digits = load_digits()
    for number, name in enumerate(CLASSES):
        pictures = digits.images[digits.target == number]
        for part, some in (("train", pictures[:train]), ("test", pictures[train : train + test])):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i, picture in enumerate(some):
                pixels = (picture * 255 / 16).astype(np.uint8)
                Image.fromarray(pixels).convert("RGB").save(folder / f"{i:04d}.jpg", quality=95)
    return root
