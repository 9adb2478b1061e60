"""Every method and `recommend` on CIFAR-10 in four scenarios: docs/results/cifar10.md.

    python -m tests.benchmarks.cifar10_study --data DIR --work DIR

``--data`` holds train/CLASS/*.jpg and test/CLASS/*.jpg; docs/experiments/cifar10-study-*.toml hold the scenarios. For
each scenario and training seed: `unlearnkit compare` of all installed methods at their defaults, of those that can be
tuned, tuned, and of training from scratch for half of the epochs; then `unlearnkit recommend`, whose choice sees no
retrained model. Each result is written as it ends, and an interrupted study goes on when it is repeated. ``--scenario``
and ``--seed`` do a part, so that several processes can share the work; ``--page`` writes the page from the results that
are there. The figures are added to docs/results/cifar10.json, from which the page is made: a study can go on elsewhere.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import warnings
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import ClassVar
from weakref import WeakKeyDictionary

import attrs
import numpy as np
import torch
from scipy.stats import t as student

from unlearnkit import ElementwiseUnlearner, PluginManager, UnlearnKitWarning, hookimpl
from unlearnkit.evaluation import EvaluationInputs, Metric
from unlearnkit.evaluation.metric import MetricTraits
from unlearnkit.evaluation.metrics import Recovery
from unlearnkit.evaluation.metrics.features import head_swap
from unlearnkit.evaluation.metrics.retrain_gap import tug_of_war
from unlearnkit.evaluation.model_outputs import outputs_of
from unlearnkit.experiments import compare, load_config, recommend
from unlearnkit.experiments.config import MethodConfig
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.train import cached_original
from unlearnkit.models import save_checkpoint
from unlearnkit.reporting import read_record

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "cifar10.md"

SCENARIOS = {
    "full-class": "Whole class",
    "subclass": "Sub-class",
    "random": "Random 1 %",
    "mislabelled": "20 % mislabelled",
}
SEEDS = (0, 1, 2)
TUG = ("forget-train", "retain-train", "retain-test")
SCRATCH, RECOMMENDED, ORIGINAL, RETRAINED = "from scratch, half of the epochs", "recommend", "original", "retrained"
SHRINK = (0.1, 0.2)  # with half of the epochs, the nearest to retraining on seed 0
AIMS = {
    "full-class": {"ToW": 0.97, "swap": 0.05},
    "subclass": {"ToW": 0.90, "swap": 0.03, "recovery": 0.04},
    "random": {"ToW": 0.95, "recovery": 0.035, "AUC": 0.02},
}
"""What `recommend` is to reach: the smallest ToW, the largest distance to retrained models, and of the AUC to 0.5."""

ABOUT = """20,000 training images, 10,000 test images, a residual network of 590,000 weights at 32 px, 18 epochs,
training seeds: {seeds}, three retrained models for each scenario, the same ones for all training seeds.
Medians over the seeds; in brackets, where there are several, the 95 % interval of their mean by Student's t,
which covers the training seeds only. *ToW*: Tug-of-War; *AUC*: loss attack; *recovery*: forget accuracy
after one epoch on the retain set, which the order of its batches changes (standard deviation 0.02 for each
of three retrained models of the sub-class, four orders each); *swap*: accuracy of the features under a fresh
head (classes: on unseen samples of the forgotten kind); *healed*: share of mislabelled training samples
whose true class is predicted, of those that are known and forgotten, and of the others. The ToW of
*retrained* is that of each retrained model against the others. Tuned methods of the sub-class and of the
mislabelled samples aim at the retrained models' forget accuracy; `recommend` sees no retrained model, and
its row is measured on the half of the test set that it did not hold out (so are those of *retrained* and
*original* where *from scratch* has no row); its aims are judged by the retrained models on the same half.
The rows of the whole class are from before `recommend` left the targets of head-swap uncorrected. All rows
are from before `shrink-perturb`, `reset-last` and `bad-teacher` took fresh weights by the seed of the edit:
theirs were those from which the original was trained (which-method.md has what that changes on one seed),
and from before BatchNorm was estimated again on mixed classes; those of random samples from before unseen
samples had each class as often as the forget set. Methods that are called by their name alone are at their
defaults. The seconds are those of a machine that was busy
with other work."""


@attrs.frozen(kw_only=True)
class Audit(Metric):
    """head-swap, recovery, and the ToW of each retrained model against the others; known models are measured once."""

    name = "study-audit"
    traits = MetricTraits(low=0.0, high=1.0, unit="fraction")
    known: ClassVar = WeakKeyDictionary()  # of the process: every edit is given a new instance

    def measure(self, inputs):
        models = {"": inputs.model, "original ": inputs.original}
        models |= {f"retrained {i} ": model for i, model in enumerate(inputs.retrained, start=1)}
        found = {}
        for prefix, model in models.items():
            if model not in self.known:
                self.known[model] = self.audit(model, inputs)
            found |= {f"{prefix}{name}": value for name, value in self.known[model].items()}
        rates = [self.known[model]["rates"] for model in inputs.retrained]
        for i, mine in enumerate(rates, start=1):
            others = [rate for rate in rates if rate is not mine]
            if others:
                mean = {split: float(np.mean([other[split] for other in others])) for split in mine}
                found[f"retrained {i} ToW"] = tug_of_war(mine, mean)
        return {name: value for name, value in found.items() if not name.endswith("rates")}

    def audit(self, model, inputs):
        splits, objective = inputs.splits, inputs.objective
        judged = "forget-test" if "forget-test" in splits else "forget-train"
        learnt = ["retain-train"] if judged == "forget-train" else ["forget-train", "retain-train"]
        alone = EvaluationInputs(model=model, splits=splits, objective=objective)
        return {
            "swap": head_swap(
                model,
                judged=splits[judged],
                learnt=[splits[split] for split in learnt],
                retain=splits["retain-train"],
                objective=objective,
            ),
            "recovery": Recovery().evaluate(alone)["retain epoch"],
            "rates": {split: outputs_of(model, splits[split], objective=objective).accuracy for split in TUG},
        }


def plugins():
    class Methods:
        @hookimpl
        def unlearnkit_register_metrics(self):
            return [Audit]

    found = PluginManager()
    found.register(Methods(), name="study")
    return found


@attrs.frozen(kw_only=True)
class Study:
    """The images, the folder of the results, and overrides as on the command line."""

    data: Path = attrs.field(converter=Path)
    work: Path = attrs.field(converter=Path)
    settings: tuple = ()
    methods: tuple = ()  # labels to do; all where there are none

    def base(self, scenario, seed):
        """Return the configuration of one scenario and training seed, with the methods of its file."""
        folder = self.work / scenario / str(seed)
        config = load_config(
            ROOT / "docs" / "experiments" / f"cifar10-study-{scenario}.toml",
            [
                f"output='{folder}'",
                f"data.options.root='{self.data}'",
                f"training.seed={seed}",
                f"model.checkpoint='{folder}/original.safetensors'",
                f"evaluation.retrained_folder='{self.work}/retrained'",
                "evaluation.page=false",
                f"comparison.training_seeds=[{seed}]",
                *self.settings,
            ],
        )
        metrics = (*config.evaluation.metrics, Audit.name)
        retrained = config.evaluation.retrained_seeds
        return attrs.evolve(
            config,
            evaluation=attrs.evolve(config.evaluation, metrics=metrics),
            comparison=attrs.evolve(config.comparison, retrained_seeds=retrained, metrics=()),
        )

    def config(self, scenario, seed):
        """Return the configuration with all methods."""
        config = self.base(scenario, seed)
        return attrs.evolve(
            config,
            method=tuple(m for m in self.edits(config) if m.label in self.methods or not self.methods),
        )

    def edits(self, config):
        """List every installed method at its defaults and, where it can be tuned, tuned; and training from scratch."""
        training, manager = config.training, plugins()
        epochs = max(1, int(config.recommend.cost * training.epochs))
        options = {name: getattr(training, name) for name in ("learning_rate", "weight_decay", "schedule")}
        options["epochs"] = epochs
        yield MethodConfig(name="retrain", label=SCRATCH, options=options)
        for shrink in SHRINK:
            label = f"shrink-perturb {shrink:g}, half of the epochs"
            yield MethodConfig(name="shrink-perturb", label=label, options={**options, "shrink": shrink})
        known = [entry for entry in manager.provided("unlearner") if entry.name != "retrain"]
        for entry in known:
            if not any(option.required for option in entry.options):
                yield MethodConfig(name=entry.name)
        for entry in known:
            if issubclass(entry.cls, ElementwiseUnlearner) or any(option.search for option in entry.options):
                yield MethodConfig(name=entry.name, label=f"{entry.name}, tuned", tuned=True)
        yield from config.method

    def run(self, scenario, seed):
        """Do what is left of one scenario and training seed."""
        config, manager = self.config(scenario, seed), plugins()

        def watch(event):
            print(f"{scenario} {seed}: {event.kind} {event.name}", flush=True)

        if config.method:
            done = compare(config, plugins=manager, watch=watch)
            for trial in done.failed:
                print(f"failed: {trial.name}: {done.results[trial.key].error}", flush=True)
        if self.methods and RECOMMENDED not in self.methods:
            return
        checkpoint = Path(config.model.checkpoint)
        if not checkpoint.exists():
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            save_checkpoint(cached_original(Experiment.load(config)), checkpoint)
        if not (Path(config.output) / "recommended").exists():
            found = recommend(self.base(scenario, seed), plugins=manager)
            print(f"{scenario} {seed}: {found.recommendation.sentence()}", flush=True)

    def rows(self, scenario, seeds):
        """Return label to seed to figures, of what is there."""
        rows = defaultdict(dict)
        for seed in map(str, seeds):
            folder = self.work / scenario / seed
            for path in sorted((folder / "trials").glob("*.json")):
                plain = json.loads(path.read_text(encoding="utf-8"))
                label, result = plain["trial"].split(" · ")[0], plain["result"]
                if result["status"] != "done":
                    rows[label][seed] = {"failed": result["error"]}
                    continue
                rows[label][seed] = figures(result["after"], result["metrics"], edit_seconds(result["seconds"]))
                if label == SCRATCH:
                    rows[ORIGINAL][seed] = figures(result["before"], result["metrics"], None, prefix="original ")
                    rows[RETRAINED][seed] = retrained_figures(result["metrics"])
            if (folder / "recommended" / "report.json").exists():
                record = read_record(folder / "recommended")
                rows[RECOMMENDED][seed] = recommended_figures(record)
                if record.metrics:
                    known = figures(accuracies(record.before), record.metrics, None, prefix="original ")
                    rows[ORIGINAL].setdefault(seed, known)
                    rows[RETRAINED].setdefault(seed, retrained_figures(record.metrics))
        return rows

    def add_to(self, known, seeds):
        """Add what is there to scenario to label to seed to figures."""
        for scenario in SCENARIOS:
            for label, by_seed in self.rows(scenario, seeds).items():
                known.setdefault(scenario, {}).setdefault(label, {}).update(by_seed)


def edit_seconds(seconds):
    return sum(value for stage, value in seconds.items() if stage not in {"evaluation", "retrained models"})


def figures(scores, metrics, seconds, prefix=""):
    """Return the columns of a row, of the edited model or of the original."""
    audit = metrics[Audit.name]
    return {
        "forget": scores["forget-train"]["accuracy"],
        "test": scores["retain-test"]["accuracy"],
        "ToW": metrics["tug-of-war"][f"{prefix}ToW"],
        "AUC": metrics["mia-loss"][f"{prefix}AUC"],
        "swap": audit[f"{prefix}swap"],
        "recovery": audit[f"{prefix}recovery"],
        **healed(metrics, prefix),
        "seconds": seconds,
    }


def healed(metrics, prefix):
    values = metrics.get("healed", {})
    return {f"healed, {part}": values[f"{prefix}{part}"] for part in ("known", "unknown") if values}


def retrained_figures(metrics):
    audit = metrics[Audit.name]
    each = {
        name: [v for key, v in audit.items() if key.startswith("retrained ") and key.endswith(f" {name}")]
        for name in ("ToW", "swap", "recovery")
    }
    found = {name: float(np.mean(values)) if values else None for name, values in each.items()}
    return {**found, "AUC": metrics["mia-loss"]["retrained AUC"], **healed(metrics, "retrained ")}


def accuracies(scores):
    return {split: {"accuracy": score.accuracy} for split, score in scores.items()}


def recommended_figures(record):
    """Return the row of a recommended edit, or why there is none."""
    found = record.recommendation
    if found.best is None:
        return {"failed": found.sentence(), "tried": tried(found)}
    mine = figures(accuracies(record.after), record.metrics, found.best.seconds)
    scratch = next(a for a in found.attempts if a.name == "from scratch")
    costs = {"epochs": found.best.epochs, "search": found.measured + sum(a.search_epochs for a in found.attempts)}
    return {
        **mine,
        **costs,
        "against": retrained_figures(record.metrics),  # on the same samples
        "share": found.best.epochs / found.retraining,
        "picked": found.best.name,
        "beside": scratch.score,
        "tried": tried(found),
    }


TRIED = ("tried", "score", "forget", "retain", "recovery", "swap", "epochs", "options")


def tried(found):
    """Write in Markdown what `recommend` tried: the best edit of each method, judged by its held-out samples."""
    lines = [
        f"{' | '.join(one.values[column] for column in TRIED)}{one.problem and f'; {one.problem}'} |"
        for one in found.attempts
    ]
    aims = ", ".join(f"{name} {value:.3f}" for name, value in found.target.items())
    return [*lines, f"*aim: {found.source}* | | | | | | | {aims} |"]


def interval(values):
    """The median, and the 95 % interval of the mean by Student's t."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if len(known) < 2:
        return f"{known[0]:.3f}"
    half = float(student.ppf(0.975, len(known) - 1)) * float(np.std(known, ddof=1)) / len(known) ** 0.5
    return f"{median(known):.3f} [{np.mean(known) - half:.3f}, {min(1.0, np.mean(known) + half):.3f}]"


def middle(values, digits=3):
    known = [value for value in values if value is not None]
    return f"{median(known):.{digits}f}" if known else "–"


def table(rows):
    """Write one scenario in Markdown: retrained, original, recommended, from scratch, then methods by Tug-of-War."""
    first = [label for label in (RETRAINED, ORIGINAL, RECOMMENDED, SCRATCH) if label in rows]

    def rank(label):
        known = [row["ToW"] for row in rows[label] if row.get("ToW") is not None]
        return -median(known) if known else 1.0

    columns = ["forget", "test", "AUC", "recovery", "swap"]
    columns += sorted({name for some in rows.values() for row in some for name in row if name.startswith("healed")})
    lines = [
        f"| model | seeds | ToW [95 %] | {' | '.join(columns)} | seconds | |",
        "|---" * (5 + len(columns)) + "|",
    ]
    for label in [*first, *sorted(set(rows) - set(first), key=rank)]:
        done = [row for row in rows[label] if "failed" not in row]
        failed = [row["failed"] for row in rows[label] if "failed" in row]
        picked = ", ".join(dict.fromkeys(row["picked"] for row in done if "picked" in row))
        note = "; ".join(
            filter(None, [picked, f"{len(failed)} failed: {failed[0].splitlines()[0][:100]}" if failed else ""])
        )
        cells = [middle([row.get(name) for row in done]) for name in columns]
        seconds = middle([row.get("seconds") for row in done], 0)
        tow = interval([row.get("ToW") for row in done])
        lines.append(f"| {label} | {len(done)} | {tow} | {' | '.join(cells)} | {seconds} | {note} |")
    return "\n".join(lines)


def reach(scenario, rows):
    """Say which aims the recommended edits reach, by the medians over the seeds, and what came nearest."""
    known = {label: [row for row in some if "failed" not in row] for label, some in rows.items()}
    if scenario not in AIMS or not known.get(RECOMMENDED) or not known.get(RETRAINED):
        return ""

    def value(label, name):
        values = [row[name] for row in known[label] if row.get(name) is not None]
        return median(values) if values else float("nan")

    def retrained(label, name):
        against = [row["against"][name] for row in known[label] if row.get("against")]
        return median(against) if against else value(RETRAINED, name)

    def misses(label):
        found = []
        for name, aim in AIMS[scenario].items():
            seen = value(label, name)
            wanted = 0.5 if name == "AUC" else retrained(label, name)
            near = seen >= aim if name == "ToW" else abs(seen - wanted) <= aim
            text = f"at least {aim}" if name == "ToW" else f"within {aim} of {wanted:.3f}"
            found += [] if near else [f"{name} is {seen:.3f}, not {text}"]
        return found

    share, search = value(RECOMMENDED, "share"), value(RECOMMENDED, "search")
    missed = misses(RECOMMENDED) + ([f"it costs {share:.2f} of retraining"] if share > 0.5 else [])
    if known.get(SCRATCH) and value(RECOMMENDED, "ToW") <= value(SCRATCH, "ToW"):
        missed.append(f"training from scratch for half of the epochs has ToW {value(SCRATCH, 'ToW'):.3f}")
    reached = f"no: {'; '.join(missed)}" if missed else "yes, every aim"
    said = [
        f"Reached by `recommend`: {reached}. The edit costs {share:.2f} of retraining, the search {search:.0f} epochs."
    ]
    others = [label for label in known if known[label] and label not in {RETRAINED, ORIGINAL, RECOMMENDED}]
    if missed and others:
        nearest = min(others, key=lambda label: (len(misses(label)), -value(label, "ToW")))
        why = "; ".join(misses(nearest)) or "every aim reached"
        said.append(f"Nearest: {nearest}, ToW {value(nearest, 'ToW'):.3f} ({why}).")
    return " ".join(said)


def attempts(rows):
    """Write in Markdown what `recommend` tried with each training seed."""
    known = {seed: row["tried"] for seed, row in sorted(rows.get(RECOMMENDED, {}).items())}
    lines = [f"| {seed} | {line}" for seed, some in known.items() for line in some]
    head = f"| seed | {' | '.join(TRIED)} |\n{'|---' * 9}|"
    return "What `recommend` tried:\n\n" + "\n".join([head, *lines]) if lines else ""


def page(known):
    """Write the page of results."""
    version = importlib.metadata.version
    done = sorted({seed for rows in known.values() for by_seed in rows.values() for seed in by_seed})
    parts = ["# CIFAR-10: every method, tuned methods and `recommend`", ABOUT.format(seeds=", ".join(done))]
    left = []
    for scenario, title in SCENARIOS.items():
        if scenario in known:
            rows = {label: [*by_seed.values()] for label, by_seed in known[scenario].items()}
            parts += [f"## {title}", table(rows)]
            parts += filter(None, [reach(scenario, rows), attempts(known[scenario])])
        missing = [str(seed) for seed in SEEDS if str(seed) not in known.get(scenario, {}).get(RECOMMENDED, {})]
        left += [f"{title.lower()} (seeds {', '.join(missing)})"] if missing else []
    if left:
        parts.append(f"Not measured yet: `recommend` for {'; '.join(left)}; and methods that are in no table.")
    where = f"Python {platform.python_version()}, torch {version('torch')}, {os.cpu_count()} CPU cores"
    parts.append(f"Measured by `python -m tests.benchmarks.cifar10_study --data DIR --work DIR` ({where}).")
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--scenario", nargs="*", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--seed", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--only", nargs="*", default=[], help=f"labels of methods to do, or {RECOMMENDED!r}")
    parser.add_argument("--set", nargs="*", default=[], help="overrides, as on the command line")
    parser.add_argument("--page", action="store_true", help="write the page only")
    parser.add_argument("--to", default=PAGE, type=Path, help="the page")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UnlearnKitWarning)
    study = Study(data=chosen.data, work=chosen.work, settings=tuple(chosen.set), methods=tuple(chosen.only))
    for seed in () if chosen.page else chosen.seed:
        for scenario in chosen.scenario:
            study.run(scenario, seed)
    path = chosen.to.with_suffix(".json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    study.add_to(known, SEEDS)
    path.write_text(json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    chosen.to.write_text(page(known), encoding="utf-8")


if __name__ == "__main__":
    main()
