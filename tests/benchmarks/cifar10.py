"""The paper's and the notebook's experiments on CIFAR-10: three tables from docs/experiments/cifar10-*.toml.

    python -m tests.benchmarks.cifar10 notebook
    python -m tests.benchmarks.cifar10 alpha
    python -m tests.benchmarks.cifar10 scenarios --seeds 0 1 2

The numbers come from the functions behind the commands `train`, `run` and `tune`, with the TOML files and the overrides
below. Existing results are reused, so an interrupted run resumes. ``--set`` overrides more settings, as on the command
line; ``--folder`` replaces ``out/cifar10`` of the files.
"""

import argparse
import importlib.metadata
import json
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import torch

from unlearnkit.evaluation import gap_to_retrain, loss_and_accuracy
from unlearnkit.evaluation.metrics.retrain_gap import tug_of_war
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.run import run
from unlearnkit.experiments.train import retrained_models, train_original
from unlearnkit.experiments.tune import tune
from unlearnkit.utils.errors import UnlearnKitWarning

EXPERIMENTS = Path(__file__).parents[2] / "docs" / "experiments"
TUG = ("forget-train", "retain-train", "retain-test")
SPLITS = (*TUG, "forget-test")
SCENARIOS = ("subclass", "full-class", "random")

NOTEBOOKS = [
    "importance.estimator='batched-diagonal-fisher'",
    "importance.options={weights='equal', reduction='mean'}",
    "importance.reference='retain'",
    "importance.batch_size=256",
    "method.ssd.normalise=false",
    "method.ssd.options.epsilon=1e-8",
]
"""The notebook's estimator and reference, and its un-normalised α = 10."""

ESTIMATORS = {
    "per sample": [],
    "batch 64, class-ordered": [NOTEBOOKS[0], "importance.batch_size=64"],
    "batch 64, shuffled": [NOTEBOOKS[0], "importance.batch_size=64", "importance.shuffle=true"],
    "batch 256, shuffled": [NOTEBOOKS[0], "importance.batch_size=256", "importance.shuffle=true"],
}
"""Name to overrides of cifar10-alpha.toml, whose own estimator is per sample."""

STEPS = {
    "ssd, α = 10, D, per sample": ("run", "ssd", []),
    "ssd, α = 10, the notebook's": ("run", "ssd", NOTEBOOKS),
    "ssd, tuned": ("tune", "ssd", []),
    "binary-mask, tuned": ("tune", "binary-mask", []),
}
"""Name of an edit to the command, the label of the method, and overrides."""


@attrs.frozen(kw_only=True)
class Worker:
    """The output folder and the overrides.

    Attributes:
        folder: Replaces ``out/cifar10`` of the TOML files.
        settings: More overrides, as on the command line.
    """

    folder: Path = attrs.field(converter=Path)
    settings: tuple[str, ...] = ()

    def config(self, name, *, seed=0, output="", settings=()):
        """Return a configuration; train its original model if the checkpoint is missing."""
        config = load_config(
            EXPERIMENTS / f"cifar10-{name}.toml",
            [
                f"output='{self.folder / name / output}'",
                f"training.seed={seed}",
                f"model.checkpoint='{self.folder}/original-{seed}.safetensors'",
                *self.settings,
                *settings,
            ],
        )
        if config.evaluation.retrained_folder:
            kept = attrs.evolve(config.evaluation, retrained_folder=str(self.folder / "retrained"))
            config = attrs.evolve(config, evaluation=kept)
        if not Path(config.model.checkpoint).exists():
            train_original(config)
        return config

    def edits(self, config):
        """Return label to the report of each edit of a configuration, as `unlearnkit run` writes it."""
        paths = {method.label: Path(config.output) / method.label / "report.json" for method in config.method}
        if not all(path.exists() for path in paths.values()):
            quietly(run, config, overwrite=True)
        return {label: json.loads(path.read_text(encoding="utf-8")) for label, path in paths.items()}

    def notebook(self):
        """Return label to report: the notebook's five edits."""
        return self.edits(self.config("notebook"))

    def alpha(self):
        """Return estimator to label to report: the α sweep."""
        return {
            name: self.edits(self.config("alpha", output=name.replace(" ", "-").replace(",", ""), settings=settings))
            for name, settings in ESTIMATORS.items()
        }

    def scenario(self, name, seeds, steps=STEPS):
        """Return name of a model to its rows, one for each training seed: accuracies, fraction edited, ToW, gaps.

        The rows of "retrained" compare each retrained model with their mean.
        """
        first = self.config(name, seed=seeds[0])
        references = self.references(name, first)
        rows = {"retrained": [scored(found, references) for found in references]}
        rows |= {"original, not edited": [], **{step: [] for step in steps}}
        for seed in seeds:
            rows["original, not edited"].append(scored(self.original(name, seed), references))
            for step in steps:
                rows[step].append(scored(self.step(name, step, seed), references))
        return rows

    def references(self, name, config):
        """Return the accuracies of each retrained model."""

        def measure():
            experiment = Experiment.load(config)
            return [accuracies(experiment, model) for model in retrained_models(experiment)]

        return self.once(f"{name}/retrained", measure)

    def original(self, name, seed):
        """Return the accuracies of an original on the splits of a scenario."""

        def measure():
            experiment = Experiment.load(self.config(name, seed=seed))
            return accuracies(experiment, experiment.original_model()[0])

        return self.once(f"{name}/original-{seed}", measure)

    def step(self, name, step, seed):
        """Make one edit as its command does; return its accuracies and the fraction edited."""
        command, label, settings = STEPS[step]
        output = f"{seed}/{list(STEPS).index(step)}"
        # Accuracies are measured below, on the same samples for all steps: tuning may reserve part of the test set.
        settings = [*settings, "evaluation.splits=['forget-train']"]
        config = self.config(name, seed=seed, output=output, settings=settings)
        config = attrs.evolve(config, method=tuple(m for m in config.method if m.label == label))
        if command == "tune":
            config = attrs.evolve(config, tuning=attrs.evolve(config.tuning, method=label))

        def measure():
            folder = Path(config.output) / (label if command == "run" else f"{label}-tuned")
            if not (folder / "report.json").exists():
                quietly({"run": run, "tune": tune}[command], config)
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            experiment = Experiment.load(config)
            edited = folder / "model.safetensors"
            model = (experiment.trained_model(str(edited)) if edited.exists() else experiment.original_model())[0]
            note = "" if edited.exists() else "no candidate"
            note = note or ("no-op" if not report["fraction"] else "")
            return {**accuracies(experiment, model), "fraction": report["fraction"], "note": note}

        return self.once(f"{name}/{output}/scores", measure)

    def once(self, name, measure):
        """Return the stored result, or measure and store it."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            found = measure()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))


def quietly(function, *args, **kwargs):
    """Call a function without warnings about edits that select nothing; the tables show them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnlearnKitWarning)
        found = function(*args, **kwargs)
        return list(found) if isinstance(found, Iterator) else found


def accuracies(experiment, model):
    """Return split to accuracy; a split without samples is left out."""
    parts = experiment.splits()
    return {
        name: loss_and_accuracy(
            model, experiment.evaluation_batches(parts[name]), objective=experiment.objective
        ).accuracy
        for name in SPLITS
        if name in parts
    }


def scored(found, references):
    """Add Tug-of-War and the gap of the forget accuracy, in accuracy and in standard deviations, to accuracies."""
    mean = {name: float(np.mean([r[name] for r in references])) for name in TUG}
    gap = gap_to_retrain(found["forget-train"], [r["forget-train"] for r in references])
    tow = tug_of_war({name: found[name] for name in TUG}, mean)
    return {**found, "ToW": tow, "gap": gap.delta, "gap sd": gap.sds}


def notebook_table(reports):
    """Write the notebook's table in Markdown."""
    before = next(iter(reports.values()))["before"]
    lines = ["| edit | fraction edited | retain, test | forget, test |", "|---|---|---|---|"]
    lines.append(f"| original | | {_two(before)} |")
    lines += [f"| {label} | {report['fraction']:.4f} | {_two(report['after'])} |" for label, report in reports.items()]
    return "\n".join(lines)


def alpha_table(reports):
    """Write the α sweep in Markdown: fraction edited, retain and forget accuracy in each cell."""
    labels = list(next(iter(reports.values())))
    lines = ["| α | " + " | ".join(reports) + " |", "|---|" + "---|" * len(reports)]
    for label in labels:
        cells = [f"{some[label]['fraction']:.4f} · {_two(some[label]['after'], ' · ')}" for some in reports.values()]
        lines.append(f"| {label.removeprefix('alpha-')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scenario_table(rows):
    """Write one scenario in Markdown: mean ± standard deviation over the rows of each model."""
    columns = [*SPLITS, "fraction", "gap", "gap sd", "ToW"]
    columns = [name for name in columns if any(name in row for some in rows.values() for row in some)]
    lines = ["| | n | " + " | ".join(columns) + " | remarks |", "|---|---|" + "---|" * (len(columns) + 1)]
    for name, some in rows.items():
        notes = [row["note"] for row in some if row.get("note")]
        remarks = ", ".join(f"{notes.count(note)} × {note}" for note in dict.fromkeys(notes))
        cells = [_spread([row[c] for row in some if row.get(c) is not None]) for c in columns]
        lines.append(f"| {name} | {len(some)} | " + " | ".join(cells) + f" | {remarks} |")
    return "\n".join(lines)


def _two(scores, between=" | "):
    return between.join(f"{scores[s]['accuracy']:.4f}" for s in ("retain-test", "forget-test"))


def _spread(values):
    if not values:
        return ""
    sd = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{sd}"


def main():
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", choices=("notebook", "alpha", "scenarios"))
    parser.add_argument("--folder", default="out/cifar10")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Worker(folder=arguments.folder, settings=tuple(arguments.settings))
    if arguments.table == "notebook":
        print(notebook_table(bench.notebook()))
    elif arguments.table == "alpha":
        print(alpha_table(bench.alpha()))
    else:
        for name in arguments.scenarios:
            print(f"\n{name}\n\n{scenario_table(bench.scenario(name, arguments.seeds, arguments.steps))}", flush=True)
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "torchvision", "numpy", "scipy"))
    print(f"\nPython {platform.python_version()}, {versions}")


if __name__ == "__main__":
    main()
