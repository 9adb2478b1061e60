"""Times importances of a model sharded over processes (FSDP, gloo), against a plain pass of the same model.

    python -m tests.benchmarks.sharded

A small language model with tied embeddings, whose blocks FSDP gathers one at a time. Variants are interleaved on the
same batch, so a busy machine slows all of them. A plain pass is forward, backward and FSDP's own reduction of the
gradients. Figures are medians of the CPU seconds of rank 0 and of the ratios within a round. They do not include the
time of a network, nor, on an idle machine, waiting for the other process.
"""

import argparse
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard

from unlearnkit import BatchedDiagonalFisher, DiagonalFisher, SketchedFisher
from unlearnkit.importance.fisher.sharded.squared_sums import Leaves, PieceTotals, SampleSquares
from unlearnkit.models import CausalLanguageModel
from unlearnkit.models.parameters import trainable

OBJECTIVE = CausalLanguageModel(mask="", pass_mask=False)
VOCABULARY = 1000


class Block(nn.Module):
    """Causal attention, and a small network after it."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        causal = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        y = self.first(x)
        x = x + self.attention(y, y, y, attn_mask=causal, need_weights=False)[0]
        return x + self.network(self.second(x))


class Gpt(nn.Module):
    """Blocks between an embedding and a tied head."""

    def __init__(self, width, blocks):
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCABULARY, width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def sharded(width, blocks):
    torch.manual_seed(0)
    model = Gpt(width, blocks).eval()
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def plain(model):
    """An ordinary pass; each process takes its own samples."""

    def run(batch):
        own = {"input_ids": batch["input_ids"][dist.get_rank() :: dist.get_world_size()]}
        OBJECTIVE.losses(model, own).mean().backward()
        model.zero_grad()

    return run


def one_at_a_time(model):
    """The fallback of the engine: one sample at a time."""
    named = trainable(model)
    leaves = Leaves(model, named)
    totals = PieceTotals(leaves, named, double=False)
    squares = SampleSquares(model, OBJECTIVE, leaves)
    return lambda batch: squares.hand_out(batch, totals.dtype, totals.add)


def seconds(run, batch):
    dist.barrier()
    start = time.process_time()
    run(batch)
    return time.process_time() - start


def work(rank, options, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=options.processes)
    model = sharded(options.width, options.blocks)
    estimators = {
        "`DiagonalFisher`": DiagonalFisher(),
        "`SketchedFisher`": SketchedFisher(),
        "`BatchedDiagonalFisher`": BatchedDiagonalFisher(),
    }
    ways = {"plain": plain(model)}
    ways |= {name: e.accumulator(model, objective=OBJECTIVE).add for name, e in estimators.items()}
    ways["one sample at a time"] = one_at_a_time(model)
    made = torch.Generator().manual_seed(1)
    samples = options.samples * options.processes
    batch = {"input_ids": torch.randint(VOCABULARY, (samples, options.tokens), generator=made)}
    for run in ways.values():
        run(batch)  # the probe, and one-time initialisation of torch
    rounds = [{name: seconds(run, batch) for name, run in ways.items()} for _ in range(options.rounds)]
    if rank == 0:
        report(rounds, model, options)
    dist.destroy_process_group()


def report(rounds, model, options):
    weights = sum(p.numel() for p in model.parameters())
    print(f"{weights:,} weights, {options.processes} processes, {options.samples} × {options.tokens} tokens in each\n")
    print("| way | ms | × plain |\n|---|---|---|")
    for name in rounds[0]:
        ms = 1000 * statistics.median(one[name] for one in rounds)
        ratio = statistics.median(one[name] / one["plain"] for one in rounds)
        print(f"| {name} | {ms:.0f} | {ratio:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rounds", 7), ("processes", 2), ("width", 256), ("blocks", 4), ("samples", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, args=(options, folder), nprocs=options.processes)


if __name__ == "__main__":
    main()
