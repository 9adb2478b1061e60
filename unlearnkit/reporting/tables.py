"""Tables for the terminal."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Column, Table
from rich.text import Text

from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.evaluation.tuning.result import shown_options
from unlearnkit.plugins.entry_points import Discovered, Problem
from unlearnkit.plugins.manager import Provided
from unlearnkit.reporting.recommendation import Recommendation
from unlearnkit.reporting.record import RunRecord
from unlearnkit.unlearning.elementwise import ElementwiseUnlearner
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.training_unlearner import TrainingUnlearner
from unlearnkit.unlearning.unlearner import Need
from unlearnkit.utils.text import percent

NEEDS = {
    Need.FORGET_IMPORTANCE: "F_f",
    Need.REFERENCE_IMPORTANCE: "F_r",
    Need.FORGET_DATA: "forget data",
    Need.RETAIN_DATA: "retain data",
    Need.MODEL_FACTORY: "fresh model",
}
"""What a method may need, in short."""


def run_table(records: Sequence[RunRecord]) -> Table:
    """One row per method: what was edited, and accuracy before and after."""
    splits = list(dict.fromkeys(name for record in records for name in record.after))
    table = compact("accuracy before→after" if splits else None, "method", "edited", "share", *splits, "seconds")
    for record in records:
        report = record.report
        scores = [_pair(record, name) for name in splits]
        # Evaluation and retraining are not part of the cost of an edit.
        seconds = sum(v for stage, v in report.seconds.items() if stage not in {"evaluation", "retrained models"})
        table.add_row(Text(record.label), f"{report.changed:,}", percent(report.fraction), *scores, f"{seconds:.2f}")
    return table


def _pair(record: RunRecord, split: str) -> str:
    scores = (record.before.get(split), record.after.get(split))
    return "→".join("–" if s is None or s.accuracy is None else f"{s.accuracy:.3f}" for s in scores)


def tensor_table(report: Report) -> Table:
    """How many weights of each tensor were edited."""
    numbers = (Column(name, justify="right") for name in ("weights", "edited", "share"))
    table = Table("tensor", *numbers, title=Text(report.sentence()))
    for t in report.tensors:
        table.add_row(Text(t.name), f"{t.size:,}", f"{t.changed:,}", percent(t.fraction))
    return table


def method_table(title: str, entries: Iterable[Provided]) -> Table:
    """Installed classes: name, what each needs, and what it is good for or does."""
    table = Table(
        Column("name", no_wrap=True),
        "needs",
        "good for, or what it does",
        title=title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for entry in entries:
        table.add_row(
            *map(Text, (entry.name, ", ".join(needs_of(entry.cls)), entry.paragraph("Good for") or entry.doc))
        )
    return table


def needs_of(cls: type) -> list[str]:
    """List what a class of methods needs, in short; an estimator and a metric need nothing of this."""
    return [short for need, short in NEEDS.items() if need in getattr(cls, "needs", ())]


def method_kind(cls: type) -> str:
    """Say how a method edits."""
    if issubclass(cls, ElementwiseUnlearner):
        return "elementwise: each weight from itself and its importances"
    if issubclass(cls, TrainingUnlearner):
        return "trains"
    return "edits weights, looking at all of them"


def method_details(kind: str, entry: Provided) -> dict[str, Any]:
    """All that is known of an installed method, estimator or metric, as JSON can hold it."""
    options = [
        {
            "name": o.name,
            "symbol": o.symbol,
            "default": None if o.required else o.default,
            "required": o.required,
            "range": list(o.choices) or [f"{sign} {bound:g}" for sign, bound in o.bounds],
            "doc": o.doc,
        }
        for o in entry.options
    ]
    return {
        "name": entry.name,
        "kind": f"method, {method_kind(entry.cls)}" if kind == "unlearner" else kind,
        "from": entry.plugin.origin,
        "does": entry.doc,
        "needs": needs_of(entry.cls),
        "good for": entry.paragraph("Good for"),
        "source": entry.paragraph("Source"),
        "options": options,
        "toml": _snippet(kind, entry),
    }


def details_text(found: Mapping[str, Any]) -> str:
    """Write what `method_details` returns for reading."""
    lines = [f"{found['name']}: {found['kind']}; from {found['from']}", found["does"]]
    lines += [f"needs: {', '.join(found['needs'])}"] if found["needs"] else []
    lines += [f"{key}: {found[key]}" for key in ("good for", "source") if found[key]]
    for o in found["options"]:
        value = "required" if o["required"] else "left out" if o["default"] is None else o["default"]
        name = f"{o['name']} ({o['symbol']})" if o["symbol"] else o["name"]
        span = f" [{', '.join(o['range'])}]" if o["range"] else ""
        lines.append(f"  {name} = {value}{span}: {o['doc']}")
    return "\n".join([*lines, "", found["toml"]])


def _snippet(kind: str, entry: Provided) -> str:
    given = {o.name: o.default for o in entry.options if not o.required and o.default is not None}
    options = f"{{ {', '.join(f'{name} = {json.dumps(value)}' for name, value in given.items())} }}" if given else "{}"
    if any(o.kind is tuple for o in entry.options):
        each = f'[[method.steps]]  # one for each step\nname = "NAME"\noptions = {options}'
        return f'[[method]]\nname = "{entry.name}"\n\n{each}'
    if kind == "unlearner":
        return f'[[method]]\nname = "{entry.name}"\noptions = {options}'
    if kind == "estimator":
        return f'[importance]\nestimator = "{entry.name}"\noptions = {options}'
    return f'[evaluation]\nmetrics = ["{entry.name}"]\noptions.{entry.name} = {options}'


def plugin_table(
    plugins: Iterable[Discovered], problems: Sequence[Problem], offers: Mapping[str, Sequence[str]]
) -> Table:
    """Every plugin that was found, what it offers, and why broken, blocked or empty ones offer nothing."""
    columns = (Column("name", no_wrap=True), "from", "module", "offers", "state")
    table = Table(*columns, title="plugins", show_lines=True)
    for plugin in plugins:
        given = offers.get(plugin.name, ())
        faults = [p for p in problems if p.plugin == plugin.name] or [p for p in (plugin.problem,) if p is not None]
        fine = "usable" if given else "no function of it is marked with @hookimpl, or each returns an empty list"
        state = "\n".join(f"{p.stage}: {p.cause}" for p in dict.fromkeys(faults)) or fine
        cells = (plugin.name, plugin.origin, plugin.target, "\n".join(given) or "nothing", state)
        table.add_row(*map(Text, cells))
    return table


def tuning_table(tuning: Tuning) -> Table:
    """The frontier of a search, and which candidate was chosen."""
    title = f"the frontier of {len(tuning.candidates)} edits, on validation data (aim: forget {tuning.target:.3f})"
    table = compact(title, "options", "selected", "BatchNorm", "retain", "forget", "")
    for c in tuning.shown:
        options = shown_options(c, "=")
        norm = "–" if c.setting is None else "again" if c.setting.reestimate else "kept"
        mark = "chosen" if c is tuning.chosen else "" if c.feasible else "over budget"
        table.add_row(options, percent(c.share), norm, f"{c.retain:.3f}", f"{c.forget:.3f}", mark)
    return table


def recommendation_table(found: Recommendation) -> Table:
    """One row per method that was tried: its best edit."""
    aims = ", ".join(f"{name} {value:.3f}" for name, value in found.target.items())
    names = [name for name in found.attempts[0].values if name != "options"]
    table = compact(f"aims: {aims}", *names, "")
    for place, attempt in enumerate(found.attempts):
        mark = "chosen" if place == found.chosen else attempt.problem
        table.add_row(*(attempt.values[name] for name in names), mark)
    return table


def compact(title: str | None, *names: str, left: int = 1, wrap: bool = False) -> Table:
    """An empty table of narrow columns; the first ``left`` ones are for text, which may ``wrap``."""
    texts = (Column(name, no_wrap=not wrap, overflow="fold" if wrap else "ellipsis") for name in names[:left])
    numbers = (Column(name, justify="right", no_wrap=True) for name in names[left:])
    return Table(*texts, *numbers, title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
