"""Compares tuned edits and a fixed α = 10 with retraining, on the digits.

    python -m tests.benchmarks.tuning

Each of the ten digits is forgotten completely, from five originals (training seeds 0 to 4). The score is Tug-of-War on
forget set, retain set and retained test data, against the mean of three models retrained without the digit (training
seeds 100 to 102). All shipped elementwise methods with a monotone option are tuned towards forget accuracy 0 (a model
never trained on a class does not predict it) with the defaults of `Tuner`, on 20 % of the training data and without the
test set. Two further methods lack the monotone option that `Tuner` needs: their option is chosen from a grid by the
same rule, on the same validation data, with and without re-estimated BatchNorm statistics.
"""

import argparse
import copy
import importlib.metadata
import platform
import time
import warnings
from collections import defaultdict
from functools import partial

import attrs
import numpy as np
import torch

from unlearnkit import CrossEntropy, DiagonalFisher, ElementwiseUnlearner, Pipeline, PluginManager, UnlearningInputs
from unlearnkit.data import ByClass, digits, forget_split, loader
from unlearnkit.data.splits import validation_split
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.evaluation.metrics.retrain_gap import tug_of_war
from unlearnkit.evaluation.tuning import Tuner, Validation
from unlearnkit.importance import Role
from unlearnkit.models.training import Training, reestimate_batch_norm, train
from unlearnkit.models.zoo import small_cnn

TRAINING = Training(epochs=20, learning_rate=3e-3)
GRIDS = {"ssd-soft": ("alpha", np.geomspace(1e-3, 1e3, 19)), "fisher-topk": ("fraction", np.geomspace(1e-3, 0.5, 19))}
TUG = ("forget-train", "retain-train", "retain-test")


def methods():
    """Name to object of each shipped elementwise method that can be tuned."""
    found = {entry.name: entry.cls for entry in PluginManager().provided("unlearner")}
    made = {name: cls() for name, cls in found.items() if issubclass(cls, ElementwiseUnlearner)}
    return {name: method for name, method in made.items() if method.promises().monotone}


@attrs.frozen(kw_only=True, eq=False)
class Worker:
    """The data of one forgotten digit, in lists of batches."""

    bundle: object
    digit: int

    @property
    def split(self):
        return forget_split(self.bundle, ByClass(classes=self.digit))

    def batches(self, rows, *, test=False, size=256):
        data = self.bundle.test if test else self.bundle.train
        return list(loader(data.subset(np.sort(rows)), batch_size=size))

    def accuracies(self, model):
        split = self.split
        parts = {
            "forget-train": self.batches(split.train.forget),
            "retain-train": self.batches(split.train.retain),
            "retain-test": self.batches(split.test.retain, test=True),
            "forget-test": self.batches(split.test.forget, test=True),
        }
        return {name: loss_and_accuracy(model, batches).accuracy for name, batches in parts.items()}

    def trained(self, rows, seed):
        model = small_cnn(seed=seed)
        train(model, self.bundle.train.subset(rows), training=attrs.evolve(TRAINING, seed=seed))
        return model.eval()

    def importance(self, model, rows, role):
        return DiagonalFisher().estimate(model, self.batches(rows, size=64), objective=CrossEntropy(), role=role)


def tuned(bench, original, seed):
    """Yield name, edited model and a note, for each method."""
    train_split = bench.split.train
    parts = validation_split(train_split, bench.bundle.train.targets, fraction=0.2, seed=seed)
    forget = bench.importance(original, parts.forget, Role.FORGET)
    full = bench.importance(original, parts.full, Role.FULL)
    data = Validation(retain=bench.batches(parts.retain_validation), forget=bench.batches(parts.forget_validation))
    for name, method in methods().items():
        model = copy.deepcopy(original)
        found = Tuner(unlearner=method).tune(
            model,
            forget=forget,
            reference=full,
            validation=data,
            target=0.0,
            retain_data=bench.batches(parts.retain),
        )
        note = "no candidate" if found.chosen is None else ("" if found.aim_reached else "aim not reached")
        yield f"{name}, tuned", model, note
    inputs = UnlearningInputs(forget=forget, reference=full)
    for name in GRIDS:
        yield (f"{name}, by grid", *by_grid(name, original, inputs, data, bench.batches(parts.retain)))


def by_grid(name, original, inputs, data, retain):
    """Return the best edit of a grid by the rule and budget of `Tuner`, or the original if there is none."""
    option, values = GRIDS[name]
    aim, best, found = loss_and_accuracy(original, data.retain).accuracy, -1.0, original
    for value in values:
        model = copy.deepcopy(original)
        PluginManager().unlearner(name)(**{option: float(value)}).unlearn(model, inputs)
        for reestimate in (False, True):
            if reestimate:
                reestimate_batch_norm(model, retain)
            kept, forget = (loss_and_accuracy(model, part).accuracy for part in (data.retain, data.forget))
            score = (1 - forget) * (1 - max(aim - kept, 0))
            if aim - kept <= 0.02 + 1e-12 and score > best:
                best, found = score, copy.deepcopy(model)
    return found, "no candidate" if found is original else ""


def fixed(bench, original):
    """Yield name, edited model and whether nothing changed, for ssd at α = 10, against D and against D_r."""
    split = bench.split.train
    forget, retain = (
        bench.importance(original, rows, role)
        for rows, role in ((split.forget, Role.FORGET), (split.retain, Role.RETAIN))
    )
    ssd = PluginManager().unlearner("ssd")
    for name, reference, role in (
        ("D", attrs.evolve(forget + retain, role=Role.FULL), Role.FULL),
        ("D_r", retain, Role.RETAIN),
    ):
        model = copy.deepcopy(original)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = Pipeline(unlearner=ssd(alpha=10.0), reference_role=role).run(
                model, forget=forget, reference=reference
            )
        yield f"ssd, α = 10, {name}", model, "" if report.changed else "no-op"


def run(classes, seeds):
    """Return name to a list of (ToW, accuracies, note)."""
    bundle = digits(seed=0)
    everything = np.arange(len(bundle.train))
    originals = {seed: Worker(bundle=bundle, digit=0).trained(everything, seed) for seed in range(seeds)}
    rows = defaultdict(list)
    for digit in range(classes):
        start, bench = time.perf_counter(), Worker(bundle=bundle, digit=digit)
        retrained = [bench.accuracies(bench.trained(bench.split.train.retain, 100 + i)) for i in range(3)]
        mean = {name: float(np.mean([r[name] for r in retrained])) for name in retrained[0]}
        score = partial(_score, mean)
        rows["one retrained model"] += [(score(r), r, "") for r in retrained]
        for seed, original in originals.items():
            found = bench.accuracies(original)
            rows["original, not edited"].append((score(found), found, ""))
            for name, model, note in (*tuned(bench, original, seed), *fixed(bench, original)):
                found = bench.accuracies(model)
                rows[name].append((score(found), found, note))
        print(f"digit {digit}: {time.perf_counter() - start:.0f} s", flush=True)
    return rows


def _score(mean, found):
    return tug_of_war({s: found[s] for s in TUG}, {s: mean[s] for s in TUG})


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    rows = run(arguments.classes, arguments.seeds)
    print(f"\n{'':26}  n  median  10th p.     min  forget-train  retain-train  retain-test  forget-test  remarks")
    for name, found in rows.items():
        tow = [value for value, _, _ in found]
        means = [np.mean([a[s] for _, a, _ in found]) for s in (*TUG, "forget-test")]
        notes = [note for _, _, note in found if note]
        remarks = ", ".join(f"{notes.count(note)} × {note}" for note in dict.fromkeys(notes))
        print(
            f"{name:26} {len(tow):2}  {np.median(tow):6.3f}  {np.percentile(tow, 10):8.3f}  {min(tow):6.3f}  "
            f"{means[0]:12.3f}  {means[1]:12.3f}  {means[2]:11.3f}  {means[3]:11.3f}  {remarks}"
        )
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "numpy", "scikit-learn", "scipy"))
    print(f"\nPython {platform.python_version()}, {versions}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
