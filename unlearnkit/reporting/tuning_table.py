"""The frontier of a search, for the terminal."""

from rich import box
from rich.table import Table

from unlearnkit.evaluation.tuning import Candidate, Tuning


def tuning_table(tuning: Tuning) -> Table:
    """Show the candidates that no other beats, and which one was chosen.

    Args:
        tuning: The result of a search.

    Returns:
        A rich table.
    """
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
