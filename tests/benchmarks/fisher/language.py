"""A small GPT for the benchmark."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, LENGTH, WIDTH, HEADS, BLOCKS = 2048, 64, 256, 4, 4


class Block(nn.Module):
    """A pre-norm transformer block: causal attention and a two-layer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries_keys_values, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.queries_keys_values(self.before(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.between(x))))


class GPT(nn.Module):
    """Tokens to logits of shape (batch, vocabulary, length), as cross-entropy expects; 4.2 million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.head(self.last(self.blocks(self.token(tokens) + self.place(places)))).transpose(1, 2)


def gpt() -> tuple[nn.Module, tuple[int, ...]]:
    """Make the model; return it and the shape of an input."""
    return GPT(), (LENGTH,)


def draw(batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Draw random sequences and the next token at each position."""
    tokens = torch.randint(0, VOCABULARY, (batch, LENGTH + 1), device=device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
