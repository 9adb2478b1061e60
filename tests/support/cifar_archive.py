"""Write a small archive in CIFAR-100's own format."""

import pickle

import numpy as np

from unlearnkit.data.cifar100 import FINE_NAMES, SUPERCLASSES

# The coarse label of fine label 0 … 99, as it is published in many places: an oracle for the table of names.
COARSE_OF_FINE = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15,
    0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
    10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19,
    18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
]  # fmt: skip
META = {"fine_label_names": list(FINE_NAMES), "coarse_label_names": list(SUPERCLASSES)}


def part(fine, seed=0):
    data = np.random.default_rng(seed).integers(0, 256, (len(fine), 3072), dtype=np.uint8)
    coarse = [COARSE_OF_FINE[label] for label in fine]
    return {"data": data, "fine_labels": list(fine), "coarse_labels": coarse, "filenames": ["x.png"] * len(fine)}


def write(root, **changes):
    folder = root / "cifar-100-python"
    folder.mkdir(exist_ok=True)
    contents = {"meta": META, "train": part([69, 0, 99, 69, 41]), "test": part([41, 69], seed=1)} | changes
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return contents
