"""Writes docs/reference/api.md from the code: ``python -m tests.docs.api_page > docs/reference/api.md``."""

import importlib
import inspect
import sys

import unlearnkit

FOLDERS = (
    "data",
    "models",
    "importance",
    "unlearning",
    "evaluation",
    "reporting",
    "experiments",
    "deletion",
    "distributed",
    "testing",
)
VALUES = {
    "Layer": "The kind of layer a kernel is for: linear or convolution.",
    "Loss": "A function of the model and a batch that returns the loss to minimise.",
    "Role": "Which set of data an importance was measured on: D_f, D_r, D, or unknown.",
    "hookimpl": "Marks a function of a plugin as the implementation of the hook of that name.",
}
"""First lines for what is neither a class nor a function."""
HEAD = """\
# API

Every public name, with the first line of its docstring; `help(name)` shows the rest: arguments with shapes and units,
what is returned, what is raised, an example. This page is generated from the code
(`python -m tests.docs.api_page > docs/reference/api.md`), and a test keeps it complete.

Plugins import from `unlearnkit` and from the modules below, and from nowhere else.
"""
TAIL = """\
## Other modules

| module | what is in it |
|---|---|
| `unlearnkit.evaluation.metrics` | the classes of the [metrics](metrics.md) |
| `unlearnkit.evaluation.tuning` | `Tuner`, `TrialTuner` and their values: [tuning](../how-to/find-the-right-edit.md) |
| `unlearnkit.plugins.manager` | `default_manager`: the shared plugin manager |
| `unlearnkit.reporting.page` | `render_page`, `write_page`: the HTML page of a run |
| `unlearnkit.reporting.plots` | [the plots of a run](../how-to/read-the-report.md), drawn on matplotlib axes |
| `unlearnkit.testing.cheats` | ten edits that hide a class without forgetting it, for authors of metrics |
| `unlearnkit.utils.memory` | `peak_memory`: the most memory that the process has used |
| `unlearnkit.utils.options` | `Option`, `options_of`: the options of a method or an estimator |
| `unlearnkit.utils.progress` | `Progress`: the type of a function as argument `progress`, which shows a bar |

Adapters and trackers for other libraries are in `unlearnkit_adapters` and `unlearnkit_trackers`; see
[Use it with other libraries](../how-to/integrations.md).
"""


def names_at_the_top():
    return sorted(unlearnkit.__all__)


def first_line(name, thing):
    own = VALUES.get(name) or (thing.__doc__ if isinstance(thing, type) else inspect.getdoc(thing)) or ""
    return own.strip().partition("\n")[0].replace("|", "\\|")


def section(module, names):
    rows = [f"| `{name}` | {first_line(name, getattr(module, name))} |" for name in names]
    also = [f"`{name}`" for name in module.__all__ if name not in names and name in names_at_the_top()]
    intro = inspect.getdoc(module).partition("\n\n")
    text = intro[0] if module is not unlearnkit else intro[2]
    lines = [f"## `{module.__name__}`", "", text.replace("``", "`"), ""]
    if also and module is not unlearnkit:
        lines += [f"Also here: {', '.join(also)}.", ""]
    return "\n".join([*lines, "| name | what it is |", "|---|---|", *rows, ""])


def page():
    top = names_at_the_top()
    sections = [section(unlearnkit, top)]
    for folder in FOLDERS:
        module = importlib.import_module(f"unlearnkit.{folder}")
        sections.append(section(module, [name for name in module.__all__ if name not in top]))
    return "\n".join([HEAD, *sections, TAIL])


if __name__ == "__main__":
    sys.stdout.write(page())
