"""The reference page of the methods that ship, made from their classes and from what was measured.

python -m tests.benchmarks.methods_page > docs/reference/methods.md
"""

import inspect
import math
import re
import sys
import warnings

import numpy as np
import torch

import unlearnkit
from tests.benchmarks.methods import RETRAINED_SEEDS, SPLITS, gap, read, settings, shipped
from unlearnkit import ElementwiseUnlearner, Need, TrainingUnlearner, UnlearnKitWarning
from unlearnkit.testing import LawCase
from unlearnkit.utils.options import options_of

HEAD = """\
# Methods and estimators

Made by `python -m tests.benchmarks.methods_page > docs/reference/methods.md` from the classes and from
[methods-digits.csv](../results/methods-digits.csv); a test keeps it equal. F_f and F_r are importances of the forget
set and of the reference, θ a weight, θ' the edited one. Equations, options and sources are those of the docstrings.

## What each needs

Labels are looked at by an estimator, by the method itself, or by neither: each method was run twice with other
labels, and the column says whether that changed the result. An importance may be stored ([`Importance.save`](api.md))
and the data be gone.

"""

MEASURED = """\
## Measured on the digits

Every digit forgotten whole, from originals of {seeds} training seeds ({numbers}): {n} edits for each row. Made by

```sh
python -m tests.benchmarks.methods
```

on 2 CPU cores that other programs used at the same time, with torch 2.14.1. The network is `small_cnn` (6,138
weights, BatchNorm), 20 epochs of Adam at 3·10⁻³; batches of 64. All are medians over the {n} edits, and gap has its
10th and 90th percentile too.

- **retain** and **forget**: accuracy on test images of the digits that are kept, and of the one that is not.
- **gap**: to retraining, in accuracy: the mean of |a − a_r| over forget set, retain set and retained test images; a_r
  is the mean of {references} models retrained without the digit (training seeds {reference_numbers}). 0 is best, and
  1/3 is what an edit gets that does nothing.
- **edited**: share of weights with other bits. **moved**: share of training images whose predicted digit is another
  than before.
- **seconds**: CPU time of one thread, for the importances that the method needs and the edit. Retraining is the
  yardstick.

Rows without options are at the defaults, with `diagonal-fisher` importances and F_r on the full set. Where the
defaults forget little or wreck the model, a second row has another setting: the smallest gap in a grid, on an
original of training seed 200, which is not in the table (`python -m tests.benchmarks.methods --search NAME` prints
it). In the grids of `prune`, `fisher-noise` and `jit` nothing both forgets and keeps the rest, and the smallest gap
is that of an edit that does nothing: another setting is shown. What is best for one original is not for the next:
tune on your own data ([tuned edits](../results/tuning-digits.md)).

"""

ESTIMATORS = """\
α means nothing without its estimator, so estimators are compared by two methods that have none: `ssd-adaptive`, and
`fisher-topk` with a fixed share of the weights. Rows of other estimators than `diagonal-fisher`:

"""

NEEDS = {
    Need.FORGET_IMPORTANCE: "F_f",
    Need.REFERENCE_IMPORTANCE: "F_r",
    Need.FORGET_DATA: "forget data",
    Need.RETAIN_DATA: "retain data",
    Need.MODEL_FACTORY: "fresh model",
}


def page(rows):
    """Write the whole page.

    Args:
        rows: The lines of the file of trials, as `tests.benchmarks.methods.read` gives them.

    Returns:
        Markdown.
    """
    methods, estimators = shipped("unlearner"), shipped("estimator")
    parts = [HEAD + needs_table(methods), measured(rows), "## Methods\n"]
    parts += [section(entry, f"- kind: {kind(entry.cls)}") for entry in methods]
    parts += ["## Estimators\n"]
    parts += [section(entry, f"- one term per {entry.cls.traits.unit}; {labels(entry.cls)}") for entry in estimators]
    return "\n".join(parts)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return (
        "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]) + "\n"
    )


# --- from the classes -------------------------------------------------------------------------------------------------


def kind(cls):
    if issubclass(cls, ElementwiseUnlearner):
        return "elementwise: each weight from itself and its importances"
    if issubclass(cls, TrainingUnlearner):
        return "trains"
    return "edits weights, looking at all of them"


def labels(cls):
    return {"data": "labels of the data", "model": "labels of the model", "none": "no labels"}[cls.traits.labels]


def looks_at_labels(cls):
    """Whether other labels in the data give other weights, tried out on a small network."""
    options = {o.name: 1 for o in options_of(cls) if o.name == "epochs"}
    edited = []
    for shift in (0, 1):
        law_case = LawCase(layers=("linear",), samples=4, batch=2)
        model = law_case.model()
        data = {f"{name}_data": [(x, (y + shift) % 4) for x, y in law_case.data(name)] for name in ("forget", "retain")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnlearnKitWarning)  # about options that fit no network of 22 weights
            cls(**options).unlearn(model, law_case.unlearning_inputs(model, **data))
        edited.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return not torch.equal(*edited)


def needs_table(methods):
    rows = []
    for entry in methods:
        short = kind(entry.cls).partition(":")[0].partition(",")[0]
        cells = ["yes" if need in entry.cls.needs else "" for need in NEEDS]
        rows.append([f"[`{entry.name}`](#{entry.name})", short, *cells, "yes" if looks_at_labels(entry.cls) else ""])
    return table(["method", "kind", *NEEDS.values(), "labels itself"], rows)


def paragraphs(cls):
    return [" ".join(part.split()) for part in inspect.getdoc(cls).split("\n\n")]


def section(entry, about):
    parts, name = paragraphs(entry.cls), entry.cls.__name__
    provider = "unlearnkit" if getattr(unlearnkit, name, None) is entry.cls else entry.cls.__module__
    (source,) = [part.removeprefix("Source: ") for part in parts if part.startswith("Source:")] or ["this project"]
    lines = [f"### `{entry.name}`\n", f"{parts[0]}\n", about]
    needs = [NEEDS[need] for need in NEEDS if need in getattr(entry.cls, "needs", ())]
    if needs:
        lines.append(f"- needs: {', '.join(needs)}")
    lines += [f"- source: {source}", f"- in Python: `{provider}.{name}`\n"]
    return "\n".join(lines) + "\n" + options_table(entry.cls)


def options_table(cls):
    rows = []
    for o in options_of(cls):
        default = "required" if o.required else "left out" if o.default is None else f"`{_toml(o.default)}`"
        span = ", ".join(o.choices) if o.choices else ", ".join(f"{sign} {bound:g}" for sign, bound in o.bounds)
        rows.append([f"`{o.name}`", o.symbol, default, span, o.doc + (f" ({o.source})" if o.source else "")])
    return table(["option", "symbol", "default", "range", "meaning"], rows) if rows else "No options.\n"


def _toml(value):
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else f"{value:g}"


# --- from the trials --------------------------------------------------------------------------------------------------


def complete_seeds(rows):
    """The training seeds for which every setting was measured on every digit."""
    done = {(row["setting"], row["seed"], row["digit"]) for row in rows}
    seeds = sorted({row["seed"] for row in rows if row["setting"] != "reference"}, key=int)
    wanted = [(str(setting), str(digit)) for setting in settings() for digit in range(10)]
    return [seed for seed in seeds if all((name, seed, digit) in done for name, digit in wanted)]


def reference_means(rows):
    """Digit to the mean accuracies of the models retrained without it."""
    known = [row for row in rows if row["setting"] == "reference"]
    return {
        digit: {s: float(np.mean([float(row[s]) for row in known if row["digit"] == digit])) for s in SPLITS}
        for digit in {row["digit"] for row in known}
    }


def measured(rows):
    seeds, means = complete_seeds(rows), reference_means(rows)
    head = ["setting", "retain", "forget", "gap", "gap, 10 % to 90 %", "edited", "moved", "seconds", "remarks"]
    main, others = [], []
    for setting in settings():
        found = [row for row in rows if row["setting"] == str(setting) and row["seed"] in seeds]
        (main if setting.estimator == "diagonal-fisher" else others).append([name_of(setting), *summary(found, means)])
    text = MEASURED.format(
        seeds=len(seeds),
        numbers=", ".join(seeds),
        n=10 * len(seeds),
        references=len(RETRAINED_SEEDS),
        reference_numbers=", ".join(map(str, RETRAINED_SEEDS)),
    )
    return text + table(head, main) + "\n" + ESTIMATORS + table(head, others)


def name_of(setting):
    options = ", ".join(f"{name} = {_toml(value)}" for name, value in setting.options.items())
    parts = [f"`{setting.method}`" if setting.method != "original" else "not edited", options]
    parts += [f"`{setting.estimator}`"] * (setting.estimator != "diagonal-fisher")
    return ", ".join(filter(None, [*parts, *["F_r on the retain set"] * (setting.reference == "retain")]))


def summary(rows, means):
    """The cells of one setting."""
    if not rows:
        return ["–"] * 8
    gaps = [gap(row, means[row["digit"]]) for row in rows]

    def middle(key, digits):
        values = [float(row[key]) for row in rows if row[key]]
        return f"{np.median(values):.{digits}f}" if values else ""

    low, high = np.percentile(gaps, [10, 90])
    edited, moved = (f"{100 * float(middle(key, 5)):.1f} %" if middle(key, 5) else "" for key in ("changed", "moved"))
    cells = [middle("retain-test", 3), middle("forget-test", 3), f"{np.median(gaps):.3f}", f"{low:.3f} to {high:.3f}"]
    return [*cells, edited, moved, middle("seconds", 2), remarks(rows)]


def remarks(rows):
    """What happened to how many of the edits, in words."""
    edited = [row for row in rows if row["changed"]]
    nothing = sum(float(row["changed"]) == 0 and not row["note"] for row in edited)
    unmoved = sum(math.isclose(float(row["moved"]), 0) for row in edited) - nothing
    wrecked = sum(float(row["retain-test"]) < 0.5 for row in edited)
    failed = sum(bool(row["note"]) for row in edited)
    words = {
        "changed nothing": nothing,
        "changed no prediction": unmoved - failed,
        "destroyed the model": wrecked,
        "failed": failed,
    }
    return ", ".join(f"{count} × {what}" for what, count in words.items() if count > 0)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(re.sub(r"\n{3,}", "\n\n", page(read())))
