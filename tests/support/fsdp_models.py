"""Models for tests of FSDP, each with its sharding and data."""

from collections.abc import Callable

import attrs
import torch
from fisher_models import Labelled, everything, mixed
from sharded_model_tasks import batches, fsdp, network
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from unlearnkit import CrossEntropy
from unlearnkit.models import CausalLanguageModel


class Block(nn.Module):
    """Causal attention and a small network beside it."""

    def __init__(self, width, *, again):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.again = again

    def forward(self, x):
        causal = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, attn_mask=causal, need_weights=False)[0]
        if self.again:
            return x + checkpoint(self.network, x, use_reentrant=False)
        return x + self.network(x)

    def network(self, x):
        return self.narrow(nn.functional.gelu(self.wide(x)))


class Gpt(nn.Module):
    """Two blocks and a tied embedding."""

    def __init__(self, *, again):
        super().__init__()
        self.embed, self.positions = nn.Embedding(11, 6), nn.Embedding(7, 6)
        self.blocks = nn.ModuleList([Block(6, again=again) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids):
        # One row of positions, as in Hugging Face's models: with one sample it looks like a per-sample row.
        x = self.embed(input_ids) + self.positions(torch.arange(input_ids.shape[1])[None])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def gpt(*, again=False):
    torch.manual_seed(0)
    return Gpt(again=again).double().eval()


def by_block(model):
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def texts():
    """11 padded sequences of two lengths, one per batch: two call plans."""
    made, found = torch.Generator().manual_seed(3), []
    for samples, length in ((4, 7), (4, 5), (3, 7)):
        ends = torch.randint(2, length + 1, (samples, 1), generator=made)
        mask = (torch.arange(length) < ends).long()
        found.append({"input_ids": torch.randint(0, 11, (samples, length), generator=made), "attention_mask": mask})
    return found


class Doubled(nn.Linear):
    """Uses a tensor made of its weight."""

    def forward(self, x):
        return nn.functional.linear(x, 2 * self.weight, self.bias)


def doubled():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), Doubled(36, 5), nn.Tanh(), Doubled(5, 4)).double().eval()


class Twice(nn.Module):
    """Uses one norm twice; optionally subtracts the batch mean, so that samples depend on each other."""

    def __init__(self, *, mixes):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(36, 5), nn.LayerNorm(5), nn.Linear(5, 4)
        self.mixes = mixes

    def forward(self, x):
        x = self.first(x.flatten(1))
        if self.mixes:
            return self.last(self.norm(x - x.mean(0)))
        return self.last(self.norm(self.norm(x).tanh()))


def twice(*, mixes):
    torch.manual_seed(0)
    return Twice(mixes=mixes).double().eval()


def ignoring(model):
    return fsdp(model, ignored_params={model[6].bias, model[3].weight})


def frozen():
    model = network()
    model[0].requires_grad_(requires_grad=False)
    return model


@attrs.frozen
class Case:
    make: Callable
    shard: Callable
    data: Callable
    objective: object
    says: str = ""
    """Expected warning on rank 0; "" when no warning is expected."""


PLAIN = CrossEntropy()
TEXT = CausalLanguageModel(pass_mask=False)
CASES = {
    "a network": Case(network, fsdp, batches, PLAIN),
    "last batch of one sample": Case(network, fsdp, lambda: batches(9), PLAIN),
    "one sample each": Case(network, fsdp, lambda: batches(3, 1), PLAIN),
    "a language model": Case(gpt, by_block, texts, TEXT),
    "recomputed": Case(lambda: gpt(again=True), by_block, texts, TEXT),
    "frozen": Case(frozen, fsdp, batches, PLAIN),
    "ignored parameters": Case(network, ignoring, batches, PLAIN),
    "every layer": Case(everything, fully_shard, lambda: mixed(4, 5, 1), Labelled()),
    "a norm used twice": Case(lambda: twice(mixes=False), fully_shard, batches, PLAIN),
    "made of weights": Case(doubled, fully_shard, batches, PLAIN),
    "of many weights": Case(doubled, fsdp, batches, PLAIN, "1.weight, 3.weight and others of 2 layers"),
    "a mean of the batch": Case(lambda: twice(mixes=True), fully_shard, batches, PLAIN, "cannot be proven to keep"),
}
HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16)


def hugging_face(kind):
    """A small Hugging Face model, and the layers that FSDP gathers one at a time."""
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        small = {"n_positions": 7, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=11, **small))
        return model.double().eval(), model.transformer.h
    small = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=11, num_key_value_heads=1, tie_word_embeddings=True, **small)
    model = transformers.LlamaForCausalLM(config)
    return model.double().eval(), model.model.layers
