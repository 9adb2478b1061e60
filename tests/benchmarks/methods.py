"""Measures every shipped method on the digits, against retraining; `docs/reference/methods.md` shows the table.

    python -m tests.benchmarks.methods                # measure what is missing in docs/results/methods-digits.csv
    python -m tests.benchmarks.methods --search jit   # how the settings beside the defaults were chosen

Each digit is forgotten completely, from originals with the training seeds 0 to 4. Each method runs through `Pipeline`
as in `unlearnkit run`: at its defaults and, where those forget little or destroy the model, at one other setting. The
other settings have the smallest gap to retraining in the grid below (median over the digits 0, 2, 4, 6 and 8), on an
original with training seed 200, which is not in the table. Each trial is a line of the file, written as soon as it is
measured, so an interrupted run resumes.
"""

import argparse
import copy
import csv
import functools
import itertools
import time
import warnings
from collections import defaultdict
from pathlib import Path

import attrs
import numpy as np
import torch

from tests.benchmarks.tuning import Worker
from unlearnkit import CrossEntropy, Need, Pipeline, PluginManager, UnlearnKitError
from unlearnkit.data import digits, loader
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.importance import Role
from unlearnkit.models.zoo import small_cnn

TRIALS = Path(__file__).parents[2] / "docs" / "results" / "methods-digits.csv"
SPLITS = ("forget-train", "retain-train", "retain-test", "forget-test")
SEARCH_SEED = 200
SEARCH_DIGITS = (0, 2, 4, 6, 8)
RETRAINED_SEEDS = range(100, 103)
BATCH = 64


@attrs.frozen(kw_only=True)
class Setting:
    """One row of the table.

    Attributes:
        method: Name of the method, or "original" for no edit.
        options: Those that differ from the defaults.
        estimator: Name of the estimator, at its defaults.
        reference: Which set F_r is measured on.
        steps: Those of a sequence.
    """

    method: str
    options: dict = attrs.field(factory=dict)
    estimator: str = "diagonal-fisher"
    reference: str = "full"
    steps: tuple["Setting", ...] = ()

    def __str__(self):
        if self.steps:
            return f"{self.method}: {' then '.join(map(str, self.steps))}"
        parts = [self.method, *(f"{name}={value}" for name, value in self.options.items())]
        parts += [self.estimator] * (self.estimator != "diagonal-fisher")
        return " ".join([*parts, *["D_r"] * (self.reference == "retain")])

    def unlearner(self):
        """Make the method."""
        steps = {"steps": [step.unlearner() for step in self.steps]} if self.steps else {}
        return PluginManager().unlearner(self.method)(**self.options, **steps)


def settings():
    """Every shipped method at its defaults and at its other setting, and every shipped estimator with two methods."""
    names = [entry.name for entry in shipped("unlearner")]
    others = [entry.name for entry in shipped("estimator") if entry.name != "diagonal-fisher"]
    found = [Setting(method="original")]
    for name in names:
        own = [setting for setting in OTHER if setting.method == name]
        found += own if any(setting.steps for setting in own) else [Setting(method=name), *own]
    return found + [attrs.evolve(setting, estimator=name) for name in others for setting in FOR_ESTIMATORS]


def shipped(role):
    """The methods or estimators of this distribution, sorted by name."""
    provided = PluginManager().provided(role)
    return sorted((entry for entry in provided if entry.plugin.origin.startswith("unlearnkit ")), key=lambda e: e.name)


def each(method, reference="full", **values):
    """Every combination of some values of options."""
    for chosen in itertools.product(*values.values()):
        yield Setting(method=method, options=dict(zip(values, chosen, strict=True)), reference=reference)


GRID = {
    "prune": [*each("prune", tau=[1e-5, 1e-4, 1e-3, 1e-2, 1e-1])],
    "binary-mask": [
        *each("binary-mask", lam=[2.0, 4.0, 6.0, 7.0, 8.0, 9.0]),
        *each("binary-mask", fraction=[0.01, 0.02, 0.03, 0.05, 0.1]),
    ],
    "ssd": [
        *each("ssd", alpha=[2.0, 4.0, 6.0, 7.0, 8.0, 9.0], lam=[0.1, 1.0]),
        *each("ssd", fraction=[0.01, 0.02, 0.03, 0.05, 0.1], lam=[0.1, 1.0]),
    ],
    "ssd-adaptive": [*each("ssd-adaptive", lam=[0.03, 0.1, 0.3])],
    "ssd-soft": [*each("ssd-soft", alpha=[0.03, 0.3, 1.0, 3.0])],
    "fisher-topk": [*each("fisher-topk", fraction=[0.01, 0.02, 0.03, 0.05, 0.1], scope=["global", "tensor"])],
    "fisher-noise": [
        *each("fisher-noise", reference="retain", sigma=[1e-3, 3e-3, 1e-2], gamma=[0.25, 0.5], floor=[1e-6, 1e-3])
    ],
    "rmu": [*each("rmu", layer=["auto", "features"], c=[6.5, 30.0], alpha=[0.1, 1.0, 10.0])],
    "jit": [*each("jit", clip=[True, False], sigma=[0.2, 0.3, 0.5], learning_rate=[1e-5, 3e-5, 1e-4])],
}
"""The grids that were searched for the other settings."""

OTHER = [
    Setting(method="binary-mask", options={"lam": 7.0}),
    Setting(method="binary-mask", options={"fraction": 0.03}),
    Setting(method="fisher-noise", options={"sigma": 0.01, "gamma": 0.25}, reference="retain"),
    Setting(method="fisher-topk", options={"fraction": 0.05, "scope": "tensor"}),
    Setting(method="jit", options={"sigma": 0.3, "learning_rate": 3e-5}),
    Setting(method="prune", options={"tau": 1e-3}),
    Setting(method="rmu", options={"layer": "features", "c": 30.0, "alpha": 1.0}),
    Setting(method="ssd", options={"alpha": 7.0, "lam": 0.1}),
    Setting(method="ssd", options={"fraction": 0.03, "lam": 0.1}),
    Setting(method="ssd-adaptive", options={"lam": 0.1}),
    Setting(method="ssd-soft", options={"alpha": 0.3}),
    Setting(
        method="sequence",
        steps=(
            Setting(method="ssd", options={"fraction": 0.03, "lam": 0.1}),
            Setting(method="finetune", options={"epochs": 1}),
        ),
    ),
]
"""The best of each grid that changes predictions, for methods whose defaults forget little or destroy the model; with
a fixed threshold and with a fraction, where a method takes both. A sequence has no defaults: the best of `ssd` with a
fraction, repaired by one epoch."""

FOR_ESTIMATORS = [Setting(method="ssd-adaptive"), Setting(method="fisher-topk", options={"fraction": 0.05})]
"""Methods without an α, which would depend on the estimator: one adapts, one selects a fixed share."""


@attrs.frozen(kw_only=True, eq=False)
class Digits:
    """The data, the originals and the retrained models, each cached."""

    bundle: object = attrs.field(factory=lambda: digits(seed=0))

    @functools.cache  # noqa: B019 - there is one object
    def original(self, seed):
        return self.bench(0).trained(np.arange(len(self.bundle.train)), seed)

    def bench(self, digit):
        return Worker(bundle=self.bundle, digit=digit)

    @functools.cache  # noqa: B019 - there is one object
    def retrained(self, digit, seed):
        bench = self.bench(digit)
        return bench.trained(bench.split.train.retain, seed)

    @functools.cache  # noqa: B019 - there is one object
    def parts(self, digit):
        """Inputs and labels of every split, each as one batch."""
        split = self.bench(digit).split
        rows = {
            "forget-train": (self.bundle.train, split.train.forget),
            "retain-train": (self.bundle.train, split.train.retain),
            "retain-test": (self.bundle.test, split.test.retain),
            "forget-test": (self.bundle.test, split.test.forget),
        }
        return {name: next(iter(loader(data.subset(r), batch_size=len(r)))) for name, (data, r) in rows.items()}

    def accuracies(self, model, digit):
        return {name: loss_and_accuracy(model, [batch]).accuracy for name, batch in self.parts(digit).items()}

    def moved(self, one, other):
        """The share of the training data whose predicted classes differ."""
        parts = self.parts(0)
        x = torch.cat([parts["forget-train"][0], parts["retain-train"][0]])
        with torch.no_grad():
            return float((one(x).argmax(1) != other(x).argmax(1)).double().mean())

    @functools.cache  # noqa: B019 - there is one object
    def importance(self, seed, digit, role, estimator):
        """The importance of one set and the CPU seconds that it took; ``digit`` is None for the full set."""
        if role is Role.FULL:
            rows = np.arange(len(self.bundle.train))
        else:
            split = self.bench(digit).split.train
            rows = split.forget if role is Role.FORGET else split.retain
        start, estimator = time.process_time(), PluginManager().estimator(estimator)()
        batches = loader(self.bundle.train.subset(rows), batch_size=BATCH)
        found = estimator.estimate(self.original(seed), batches, objective=CrossEntropy(), role=role)
        return found, time.process_time() - start


def trial(data, setting, seed, digit):
    """Edit once and measure; a dict that is one line of the file."""
    model = copy.deepcopy(data.original(seed))
    outcome = {} if setting.method == "original" else edit(data, model, setting, seed, digit)
    found = {split: f"{value:.5f}" for split, value in data.accuracies(model, digit).items()}
    moved = f"{data.moved(data.original(seed), model):.5f}"
    return {"setting": str(setting), "seed": seed, "digit": digit, **found, "moved": moved, **outcome}


def edit(data, model, setting, seed, digit):
    """Edit a copy of an original as `unlearnkit run` does; return the changed fraction and the seconds."""
    unlearner = setting.unlearner()
    role, seconds, inputs = Role(setting.reference), 0.0, {}
    for need, key, which in (
        (Need.FORGET_IMPORTANCE, "forget", Role.FORGET),
        (Need.REFERENCE_IMPORTANCE, "reference", role),
    ):
        if need in unlearner.requires():
            whose = None if which is Role.FULL else digit
            inputs[key], took = data.importance(seed, whose, which, setting.estimator)
            seconds += took
    split, train = data.bench(digit).split.train, data.bundle.train
    start, note, changed = time.process_time(), "", 0.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = Pipeline(unlearner=unlearner, reference_role=role).run(
                model,
                **inputs,
                forget_data=loader(train.subset(split.forget), batch_size=BATCH),
                retain_data=loader(train.subset(split.retain), batch_size=BATCH),
                model_factory=small_cnn,
                seed=seed,
            )
        changed = report.fraction
    except UnlearnKitError as error:  # a loss that is not finite, say: the model is rolled back
        note = type(error).__name__
    return {
        "changed": f"{changed:.5f}",
        "seconds": f"{seconds + time.process_time() - start:.3f}",
        "note": note,
    }


FIELDS = ("setting", "seed", "digit", *SPLITS, "moved", "changed", "seconds", "note")


def read(path=TRIALS):
    """The lines of the file, as dicts of text."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measure(path, *, seeds):
    """Write every trial that is missing in the file; retrained models have the setting "reference"."""
    done = {(row["setting"], int(row["seed"]), int(row["digit"])) for row in read(path)}
    data, wanted = Digits(), settings()
    fresh = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        for digit, seed in itertools.product(range(10), RETRAINED_SEEDS):
            if ("reference", seed, digit) not in done:
                found = data.accuracies(data.retrained(digit, seed), digit).items()
                line = {name: f"{value:.5f}" for name, value in found}
                writer.writerow({"setting": "reference", "seed": seed, "digit": digit, **line})
                file.flush()
        for seed in seeds:
            for digit in range(10):
                start = time.perf_counter()
                for setting in wanted:
                    if (str(setting), seed, digit) not in done:
                        writer.writerow(trial(data, setting, seed, digit))
                        file.flush()
                print(f"seed {seed}, digit {digit}: {time.perf_counter() - start:.0f} s", flush=True)


def gap(row, means):
    """Mean |accuracy − mean accuracy of the retrained models| over forget set, retain set and retained test data."""
    return float(np.mean([abs(float(row[split]) - means[split]) for split in SPLITS[:3]]))


def search(names):
    """Print the median gap of every setting of the grids of some methods."""
    data, gaps = Digits(), defaultdict(list)
    for digit in SEARCH_DIGITS:
        rows = [data.accuracies(data.retrained(digit, seed), digit) for seed in RETRAINED_SEEDS]
        means = {split: float(np.mean([row[split] for row in rows])) for split in SPLITS}
        for name in names:
            for setting in [Setting(method=name), *GRID[name]]:
                row = trial(data, setting, SEARCH_SEED, digit)
                gaps[str(setting)].append((gap(row, means), float(row["forget-train"]), float(row["retain-test"])))
    for setting, found in gaps.items():
        middle = np.median(np.array(found), axis=0)
        print(f"{setting:60} gap {middle[0]:.3f}  forget {middle[1]:.3f}  retain {middle[2]:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--search", nargs="+", choices=GRID, metavar="METHOD")
    parser.add_argument("--trials", type=Path, default=TRIALS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.search:
        search(arguments.search)
    else:
        measure(arguments.trials, seeds=arguments.seeds)


if __name__ == "__main__":
    main()
