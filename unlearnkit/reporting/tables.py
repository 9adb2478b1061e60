"""Tables for the terminal."""

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Column, Table

from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.plugins.entry_points import Discovered, Problem
from unlearnkit.plugins.manager import Provided
from unlearnkit.reporting.record import RunRecord
from unlearnkit.unlearning.report import Report


def run_table(records: Sequence[RunRecord]) -> Table:
    """One row per method: what was edited, and accuracy before and after."""
    splits = list(dict.fromkeys(name for record in records for name in record.after))
    table = compact("accuracy before→after" if splits else None, "method", "edited", "fraction", *splits, "seconds")
    for record in records:
        report = record.report
        scores = [_pair(record, name) for name in splits]
        # Evaluation and retraining are not part of the cost of an edit.
        seconds = sum(v for stage, v in report.seconds.items() if stage not in {"evaluation", "retrained models"})
        table.add_row(record.label, f"{report.changed:,}", f"{report.fraction:.4f}", *scores, f"{seconds:.2f}")
    return table


def _pair(record: RunRecord, split: str) -> str:
    scores = (record.before.get(split), record.after.get(split))
    return "→".join("–" if s is None or s.accuracy is None else f"{s.accuracy:.3f}" for s in scores)


def tensor_table(report: Report) -> Table:
    """How many weights of each tensor were edited."""
    numbers = (Column(name, justify="right") for name in ("weights", "edited", "fraction"))
    table = Table("tensor", *numbers, title=report.sentence())
    for t in report.tensors:
        table.add_row(t.name, f"{t.size:,}", f"{t.changed:,}", f"{t.fraction:.4f}")
    return table


def method_table(kind: str, entries: Iterable[Provided]) -> Table:
    """Installed classes, with their options and defaults."""
    table = Table(Column("name", no_wrap=True), "from", "what it does, and its options", title=kind, show_lines=True)
    for entry in entries:
        options = [
            f"  {o.name}{f' ({o.symbol})' if o.symbol else ''} = {'required' if o.required else o.default}: {o.doc}"
            for o in entry.options
        ]
        table.add_row(*map(escape, (entry.name, entry.plugin.origin, "\n".join([entry.doc, *options]))))
    return table


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
        table.add_row(*map(escape, cells))
    return table


def tuning_table(tuning: Tuning) -> Table:
    """The frontier of a search, and which candidate was chosen."""
    title = f"the frontier of {len(tuning.candidates)} edits, on validation data (aim: forget {tuning.target:.3f})"
    table = compact(title, "options", "selected", "BatchNorm", "retain", "forget", "")
    shown = [*tuning.frontier]
    if tuning.chosen is not None and not any(c is tuning.chosen for c in shown):
        shown.append(tuning.chosen)
    for c in shown:
        options = ", ".join(f"{name}={value:.4g}" for name, value in c.options.items())
        norm = "–" if c.setting is None else "again" if c.setting.reestimate else "kept"
        mark = "chosen" if c is tuning.chosen else "" if c.feasible else "over budget"
        table.add_row(options, f"{100 * c.selected:.3g} %", norm, f"{c.retain:.3f}", f"{c.forget:.3f}", mark)
    return table


def compact(title: str | None, *names: str, left: int = 1, wrap: bool = False) -> Table:
    """An empty table of narrow columns; the first ``left`` ones are for text, which may ``wrap``."""
    texts = (Column(name, no_wrap=not wrap, overflow="fold" if wrap else "ellipsis") for name in names[:left])
    numbers = (Column(name, justify="right", no_wrap=True) for name in names[left:])
    return Table(*texts, *numbers, title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
