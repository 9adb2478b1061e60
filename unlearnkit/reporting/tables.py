"""Tables for the terminal."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from unlearnkit.evaluation.tuning import Candidate, Tuning
from unlearnkit.plugins.entry_points import Discovered, Problem
from unlearnkit.plugins.manager import Provided
from unlearnkit.reporting.record import RunRecord
from unlearnkit.unlearning.report import Report


def run_table(records: Sequence[RunRecord]) -> Table:
    """Show one row per method: what was edited, and accuracy before and after."""
    splits = list(dict.fromkeys(name for record in records for name in record.after))
    title = "accuracy before→after" if splits else None
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("edited", "fraction", *splits, "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        report = record.report
        scores = [_pair(record, name) for name in splits]
        # Evaluation and retraining are not part of the cost of an edit.
        seconds = sum(v for stage, v in report.seconds.items() if stage not in {"evaluation", "retrained models"})
        table.add_row(record.label, f"{report.changed:,}", f"{report.fraction:.4f}", *scores, f"{seconds:.2f}")
    return table


def _pair(record: RunRecord, split: str) -> str:
    def show(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    before, after = record.before.get(split), record.after.get(split)
    return f"{show(before and before.accuracy)}→{show(after and after.accuracy)}"


def tensor_table(report: Report) -> Table:
    """Show how many weights of each tensor were edited."""
    table = Table(title=report.sentence())
    table.add_column("tensor")
    for name in ("weights", "edited", "fraction"):
        table.add_column(name, justify="right")
    for t in report.tensors:
        table.add_row(t.name, f"{t.size:,}", f"{t.changed:,}", f"{t.fraction:.4f}")
    return table


def method_table(kind: str, entries: Iterable[Provided]) -> Table:
    """Show installed classes, with their options and defaults."""
    table = Table(title=kind, show_lines=True)
    table.add_column("name", no_wrap=True)
    for name in ("from", "what it does, and its options"):
        table.add_column(name)
    for entry in entries:
        options = [
            f"  {o.name}{f' ({o.symbol})' if o.symbol else ''} = {'required' if o.required else o.default}: {o.doc}"
            for o in entry.options
        ]
        table.add_row(entry.name, entry.plugin.origin, "\n".join([entry.doc, *options]))
    return table


def plugin_table(plugins: Iterable[Discovered], problems: Sequence[Problem]) -> Table:
    """Show every plugin that was found, and why broken or blocked ones are left out."""
    table = Table(title="plugins", show_lines=True)
    table.add_column("name", no_wrap=True)
    for name in ("from", "module", "state"):
        table.add_column(name)
    for plugin in plugins:
        faults = [p for p in problems if p.plugin == plugin.name] or [p for p in (plugin.problem,) if p is not None]
        state = "\n".join(f"{p.stage}: {p.error}" for p in dict.fromkeys(faults)) or "usable"
        table.add_row(plugin.name, plugin.origin, plugin.target, state)
    return table


def tuning_table(tuning: Tuning) -> Table:
    """Show the frontier of a search, and which candidate was chosen."""
    title = f"the frontier of {len(tuning.candidates)} edits, on validation data (aim: forget {tuning.target:.3f})"
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("options", no_wrap=True)
    for name in ("selected", "BatchNorm", "retain", "forget", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for candidate in tuning.frontier:
        mark = "chosen" if candidate is tuning.chosen else "" if candidate.feasible else "over budget"
        table.add_row(_options(candidate), *_numbers(candidate), mark)
    if tuning.chosen is not None and not any(c is tuning.chosen for c in tuning.frontier):
        table.add_row(_options(tuning.chosen), *_numbers(tuning.chosen), "chosen")
    return table


def _options(candidate: Candidate) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in candidate.options.items())


def _numbers(candidate: Candidate) -> tuple[str, str, str, str]:
    norm = "again" if candidate.setting.reestimate else "kept"
    return f"{100 * candidate.selected:.3g} %", norm, f"{candidate.retain:.3f}", f"{candidate.forget:.3f}"
