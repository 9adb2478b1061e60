"""A network of four large tensors, and a few samples: for tests of memory."""

import torch
from torch import nn

from unlearnkit.data import DataBundle, LabelledImages

WIDTH, LAYERS = 1024, 4
LARGEST = WIDTH * WIDTH * 4
"""Bytes of the largest tensor."""


def network(num_classes=3):
    layers = [nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU()]
    for _ in range(LAYERS):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, num_classes))


def bundle():
    def images(seed, each):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(3).repeat_interleave(each)
        kinds = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(len(labels), 1, 8, 8, generator=generator)
        return LabelledImages(images=kinds[labels] + noise / 4, labels={"kind": labels.numpy()}, target="kind")

    return DataBundle(name="heavy", train=images(1, 6), test=images(2, 2))


TOML = """
output = "{root}/out"
device = "cpu"
[model]
factory = "large_model:network"
checkpoint = "{root}/original.safetensors"
[data]
factory = "large_model:bundle"
[training]
epochs = 3
learning_rate = 1e-2
[importance]
options = {{ accumulate = "float64" }}
[[method]]
name = "ssd"
options = {{ alpha = 2.9999 }}
[deletion]
budget = 1.0
"""
