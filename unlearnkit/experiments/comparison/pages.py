"""A comparison for people: a table for the terminal, and the same as a page."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from unlearnkit.experiments.comparison.summary import Statistic, VariantSummary
from unlearnkit.experiments.comparison.table import Row

_TUG = "tug-of-war:ToW"
_SHORT = {"fraction": "edited", "accuracy:forget-train": "forget", "accuracy:retain-test": "retain"}
_SHOWN = {
    "fraction": "edited",
    "accuracy:forget-train": "forget-train",
    "accuracy:retain-train": "retain-train",
    "accuracy:forget-test": "forget-test",
    "accuracy:retain-test": "retain-test",
}
_NOTE = (
    "n: trials, failed ones included, which have no values. ToW, its median and its 10th percentile: Tug-of-War, "
    "Π(1 − |Δ accuracy|) against the mean of the retrained models; 1 is as good as retraining. edited: share of "
    "weights with other bits than before. seconds: the medians of importances, tuning and edit, added up, without "
    "evaluation. The other columns are accuracies."
)
Lines = Sequence[Sequence[str]]


def lines_of(
    summaries: Sequence[VariantSummary], original: Mapping[str, Statistic], *, short: bool = False
) -> tuple[tuple[str, ...], Lines]:
    """Choose what a person looks at first."""
    known = {name for s in summaries for name in s.measures}
    columns = {name: title for name, title in (_SHORT if short else _SHOWN).items() if name in known}
    names = ("median", "10th p.", "ToW mean ± sd") if short else ("ToW median", "ToW 10th p.", "ToW mean ± sd")
    tug = names if _TUG in known else ()
    header = ("variant", "n", *tug, *columns.values(), "seconds", "remarks")

    def line(name: str, n: int, found: Mapping[str, Statistic], seconds: str, remarks: str) -> tuple[str, ...]:
        war = found.get(_TUG)
        three = ("–",) * 3 if war is None else (f"{war.median:.3f}", f"{war.p10:.3f}", str(war))
        shown = [(f"{found[n].mean:.3f}" if short else str(found[n])) if n in found else "–" for n in columns]
        return (name, str(n), *(three if tug else ()), *shown, seconds, remarks)

    n = max((s.n for s in original.values()), default=0)
    first = [line("(original)", n, original, "–", "")] if n else []
    return header, [*first, *(line(s.variant, s.trials, s.measures, _price(s), s.remarks) for s in summaries)]


def summary_table(summaries: Sequence[VariantSummary], original: Mapping[str, Statistic]) -> Table:
    """Show one line per variant."""
    header, lines = lines_of(summaries, original, short=True)
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in header[:-1]:  # remarks need more room than there is: `remark_lines`
        words = name == "variant"
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for line in lines:
        table.add_row(*line[:-1])
    return table


def remark_lines(summaries: Sequence[VariantSummary]) -> list[str]:
    """Say what the numbers do not: how many trials changed nothing, destroyed the model, failed."""
    return [f"{s.variant}: {s.remarks} (of {s.trials})" for s in summaries if s.remarks]


def summary_page(
    summaries: Sequence[VariantSummary], original: Mapping[str, Statistic], *, rows: Sequence[Row], covers: str
) -> str:
    """Write a comparison as a page."""
    header, lines = lines_of(summaries, original)
    table = [
        _line(header),
        _line([":--" if name in {"variant", "remarks"} else "--:" for name in header]),
        *map(_line, lines),
    ]
    failed = [row for row in rows if row["status"] != "done"]
    errors = [
        f"- {r['variant']}, {r['forget']}, training seed {r['training_seed']}, unlearning seed "
        f"{r['unlearning_seed']}: {' '.join(str(r['error']).split())}"
        for r in failed
    ]
    notes = [f"Mean ± sample standard deviation: {covers}.", "", _NOTE]
    parts = ["# Comparison", "", *table, "", *notes, *(["", "## Failed trials", "", *errors] if errors else [])]
    return "\n".join(parts) + "\n"


def _price(summary: VariantSummary) -> str:
    # Evaluation is not part of the price of an edit.
    measures = summary.measures.items()
    stages = [s.median for n, s in measures if n.startswith("seconds:") and n != "seconds:evaluation"]
    return f"{sum(stages):.2f}" if stages else "–"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
