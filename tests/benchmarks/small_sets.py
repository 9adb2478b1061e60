"""What the exact Fisher of a small forget set costs: the first and the second estimate on one model.

    python -m tests.benchmarks.small_sets
    python -m tests.benchmarks.small_sets --models resnet18 --samples 1 16 --rounds 9

CPU seconds of one thread. In each round: a plain forward and backward pass over the set (mean loss), one sample at a
time with squares added up, the same by `BatchedDiagonalFisher` on batches of one sample, which checks the weights and
totals as every estimator is made to, and two estimates of `DiagonalFisher`, one after the other, on a model that has
never been measured. All samples are one batch. The medians of the ratios to the plain pass of the same round are
printed.
"""

import argparse
import copy
import statistics
import time
import warnings
from functools import partial

import torch
from torch import nn
from torchvision.models import resnet18, vit_b_16

from unlearnkit import BatchedDiagonalFisher, CrossEntropy, DiagonalFisher
from unlearnkit.models import CausalLanguageModel

TOKENS, VOCABULARY = 32, 49_152


class LanguageModel(nn.Module):
    """134 million weights: 30 layers of width 576, a tied embedding."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, 576), nn.Embedding(TOKENS, 576)
        layer = nn.TransformerEncoderLayer(576, 9, 1896, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(30))
        self.norm = nn.LayerNorm(576)

    def forward(self, t):
        x = self.tokens(t) + self.places(torch.arange(t.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(t.shape[1])
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return nn.functional.linear(self.norm(x), self.tokens.weight)


def images(side):
    return lambda n: (torch.randn(n, 3, side, side), torch.randint(0, 20, (n,)))


MODELS = {
    "resnet18": (lambda: resnet18(num_classes=20), images(48), CrossEntropy()),
    "vit": (
        lambda: vit_b_16(num_classes=20, image_size=64),
        images(64),
        CrossEntropy(),
    ),
    "language model": (
        LanguageModel,
        lambda n: {"input_ids": torch.randint(0, VOCABULARY, (n, TOKENS))},
        CausalLanguageModel(mask="", pass_mask=False),
    ),
}


def plain(model, batch, objective):
    model.zero_grad(set_to_none=True)
    objective.losses(model, batch).mean().backward()
    model.zero_grad(set_to_none=True)


def one_at_a_time(model, batch, objective):
    totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for one in each(batch):
        model.zero_grad(set_to_none=True)
        objective.losses(model, one).sum().backward()
        for name, p in model.named_parameters():
            totals[name].addcmul_(p.grad, p.grad)
    model.zero_grad(set_to_none=True)


def each(batch):
    if isinstance(batch, dict):
        return [{key: t[i : i + 1] for key, t in batch.items()} for i in range(len(batch["input_ids"]))]
    return [tuple(t[i : i + 1] for t in batch) for i in range(len(batch[0]))]


def seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(name, samples, rounds):
    make, draw, objective = MODELS[name]
    torch.manual_seed(0)
    model, batch, fisher = make().eval(), draw(samples), DiagonalFisher()
    plain(model, batch, objective)
    found = []
    for _ in range(rounds):
        fresh = copy.deepcopy(model)  # no estimate has seen it
        estimate = partial(fisher.estimate, fresh, [batch], objective=objective)
        ways = [
            partial(plain, model, batch, objective),
            partial(one_at_a_time, model, batch, objective),
            partial(BatchedDiagonalFisher().estimate, model, each(batch), objective=objective),
            estimate,
            estimate,
        ]
        found.append([seconds(way) for way in ways])
    base = statistics.median(times[0] for times in found)
    ratios = [statistics.median(times[i] / times[0] for times in found) for i in range(1, 5)]
    return base, ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, CPU time, {arguments.rounds} rounds")
    print("| model | samples | plain, ms | one at a time | one at a time, checked | first estimate | second estimate |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models:
        for samples in arguments.samples:
            base, ratios = measure(name, samples, arguments.rounds)
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {name} | {samples} | {1e3 * base:.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
