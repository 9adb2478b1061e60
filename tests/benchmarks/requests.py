"""Times a deletion request with stored importances, against measuring them again and against retraining.

    python -m tests.benchmarks.requests

One digit is forgotten, on a fresh ledger each round. The three are interleaved, so a busy machine slows all of them.
Figures are medians of CPU seconds of one thread, without the time spent waiting for the disk, and of ratios within a
round.
"""

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import CrossEntropy, DiagonalFisher, Pipeline
from unlearnkit.data import loader
from unlearnkit.deletion import Deletion
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.train import train_original
from unlearnkit.models.training import train

TOML = """
output = "{root}/out"
device = "cpu"
[model]
factory = "unlearnkit.models:small_cnn"
options = {{ width = {width} }}
checkpoint = "{root}/original.safetensors"
[data]
name = "digits"
[training]
epochs = 20
learning_rate = 3e-3
[[method]]
name = "ssd"
options = {{ alpha = 5.0 }}
[deletion]
budget = 1.0
"""


def with_store(config, root, number):
    """A request for a whole group with stored importances; starting the ledger is not measured."""
    deletion = Deletion.load(load_config(config, [f"deletion.folder='{root}/ledger-{number}'"]))
    deletion.start()
    deletion.ask("request", groups=["3"])
    return deletion.work


def measured_again(experiment, digit):
    """The same edit, with both importances measured first; no ledger, no receipt, no evaluation."""
    model, _ = experiment.original_model()
    train_set = experiment.bundle.train
    forget = train_set.subset((train_set.targets == digit).nonzero().reshape(-1))
    pipeline = Pipeline(unlearner=SelectiveSynapticDampening(alpha=5.0), estimator=DiagonalFisher())
    batches = [loader(data, batch_size=64) for data in (forget, train_set)]
    edited = copy.deepcopy(model)
    return lambda: pipeline.run(edited, forget=batches[0], reference=batches[1], objective=CrossEntropy())


def retrained(experiment, digit):
    """A fresh model, trained on all other digits."""
    train_set = experiment.bundle.train
    stay = train_set.subset((train_set.targets != digit).nonzero().reshape(-1))
    return lambda: train(experiment.fresh_model(), stay, training=experiment.config.training)


def seconds(run):
    start = time.process_time()
    run()
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=8, help="of small_cnn")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "requests.toml"
        config.write_text(TOML.format(root=folder, width=arguments.width))
        train_original(load_config(config))
        experiment = Deletion.load(load_config(config)).experiment
        times = {"a request, with stored importances": [], "the edit, importances measured again": [], "retraining": []}
        for number in range(arguments.rounds):
            runs = (with_store(config, folder, number), measured_again(experiment, 3), retrained(experiment, 3))
            for found, run in zip(times.values(), runs, strict=True):
                found.append(seconds(run))
    print(f"torch {torch.__version__}, one thread, small_cnn of width {arguments.width}, {arguments.rounds} rounds")
    print("| what | CPU seconds | × a request |\n|---|---|---|")
    base = next(iter(times.values()))
    for name, found in times.items():
        ratio = statistics.median(one / first for one, first in zip(found, base, strict=True))
        print(f"| {name} | {statistics.median(found):.2f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
