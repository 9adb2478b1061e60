"""A small network that mixes the layers people use: the models that laws are tried on."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

LAYERS = ("linear", "conv", "layer-norm", "batch-norm", "attention", "dropout")
"""What `SmallNet` can be built of, besides its stem and head."""

WIDTH, POSITIONS, CLASSES = 2, 3, 4


@final
class SmallNet(nn.Module):
    """A classifier of 3 numbers in [0, 4) into 4 classes, of at most some 100 weights.

    The same arguments give the same weights; the global generators are not touched.

    Args:
        layers: Some of `LAYERS`, in order.
        embedding: Look the numbers up in a table, instead of multiplying by them.
        tied: Share weights: the head with the embedding, or two linear layers.
        frozen: Freeze the stem.
        training: The mode it is in.
        dtype: Of all weights.
        seed: Of the weights.

    Example:
        >>> SmallNet(layers=("conv",)).eval()(torch.tensor([[0.0, 1.0, 2.0]])).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        *,
        layers: Sequence[str] = ("linear",),
        embedding: bool = False,
        tied: bool = False,
        frozen: bool = False,
        training: bool = True,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.stem: nn.Module = nn.Embedding(CLASSES, WIDTH) if embedding else nn.Linear(1, WIDTH)
            self.layers = nn.ModuleList(_LAYERS[name]() for name in layers)
            self.head = nn.Linear(WIDTH, CLASSES)
            if tied:
                self._tie()
            with torch.no_grad():
                for p in self.parameters():
                    p.copy_(torch.randn(p.shape))
        self.stem.requires_grad_(not frozen)
        self.to(dtype).train(training)

    def _tie(self) -> None:
        if isinstance(self.stem, nn.Embedding):
            self.head.weight = self.stem.weight
        else:
            twins = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]
            twins[1].weight = twins[0].weight
            self.layers.extend(twins)

    def forward(self, x: Tensor) -> Tensor:
        """Classify inputs of shape (batch, 3), values in [0, 4): logits of shape (batch, 4)."""
        if isinstance(self.stem, nn.Embedding):
            h = self.stem(x.detach().long().clamp(0, CLASSES - 1))
        else:
            h = self.stem(x.unsqueeze(-1))
        for layer in self.layers:
            h = _apply(layer, h)
        logits: Tensor = self.head(h.mean(1))
        return logits


_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "conv": lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1),
    "layer-norm": lambda: nn.LayerNorm(WIDTH),
    "batch-norm": lambda: nn.BatchNorm1d(WIDTH),
    "attention": lambda: nn.MultiheadAttention(WIDTH, 1, batch_first=True),
    "dropout": lambda: nn.Dropout(0.5),
}


def _apply(layer: nn.Module, h: Tensor) -> Tensor:
    """Run one layer on shape (batch, positions, width)."""
    result: Tensor
    if isinstance(layer, nn.MultiheadAttention):
        result = h + layer(h, h, h)[0]
    elif isinstance(layer, nn.Conv1d | nn.BatchNorm1d):
        result = layer(h.transpose(1, 2)).transpose(1, 2)
    else:
        result = layer(h)
    return result.tanh() if isinstance(layer, nn.Linear | nn.Conv1d) else result
