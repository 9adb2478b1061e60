"""Tables for the terminal."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from unlearnkit.plugins.entry_points import Discovered, Problem
from unlearnkit.plugins.registry import Provided
from unlearnkit.reporting.record import RunRecord
from unlearnkit.unlearning.report import Report


def run_table(records: Sequence[RunRecord]) -> Table:
    """Show one row per method: what was edited, and accuracy before and after.

    Args:
        records: Of one original model.

    Returns:
        A rich table.
    """
    splits = list(dict.fromkeys(name for record in records for name in record.after))
    title = "accuracy before→after" if splits else None
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("edited", "fraction", *splits, "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        report = record.report
        scores = [_pair(record, name) for name in splits]
        # What is there to measure by is not part of the price of an edit.
        seconds = sum(v for stage, v in report.seconds.items() if stage not in {"evaluation", "retrained models"})
        table.add_row(record.label, f"{report.changed:,}", f"{report.fraction:.4f}", *scores, f"{seconds:.2f}")
    return table


def _pair(record: RunRecord, split: str) -> str:
    def show(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    before, after = record.before.get(split), record.after.get(split)
    return f"{show(before and before.accuracy)}→{show(after and after.accuracy)}"


def tensor_table(report: Report) -> Table:
    """Show how many weights of each tensor were edited.

    Args:
        report: Of one method.

    Returns:
        A rich table.
    """
    table = Table(title=report.sentence())
    table.add_column("tensor")
    for name in ("weights", "edited", "fraction"):
        table.add_column(name, justify="right")
    for t in report.tensors:
        table.add_row(t.name, f"{t.size:,}", f"{t.changed:,}", f"{t.fraction:.4f}")
    return table


def method_table(kind: str, entries: Iterable[Provided]) -> Table:
    """Show what is installed, with options and defaults.

    Args:
        kind: Title.
        entries: Classes that plugins provide.

    Returns:
        A rich table.
    """
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
    """Show every plugin that was found, broken and blocked ones with the reason.

    Args:
        plugins: What was found.
        problems: All that is wrong.

    Returns:
        A rich table.
    """
    table = Table(title="plugins", show_lines=True)
    table.add_column("name", no_wrap=True)
    for name in ("from", "module", "state"):
        table.add_column(name)
    for plugin in plugins:
        faults = [p for p in problems if p.plugin == plugin.name] or [p for p in (plugin.problem,) if p is not None]
        state = "\n".join(f"{p.stage}: {p.error}" for p in dict.fromkeys(faults)) or "usable"
        table.add_row(plugin.name, plugin.origin, plugin.target, state)
    return table
