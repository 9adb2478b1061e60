"""The tables of a comparison: a row per trial, a summary per variant, as CSV, Markdown, HTML and on the terminal."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, final

import attrs
import numpy as np
from rich.table import Table

from unlearnkit.experiments.comparison.trial import Trial, TrialResult
from unlearnkit.experiments.config import Config
from unlearnkit.reporting import page
from unlearnkit.reporting.tables import compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]


def row_of(trial: Trial, result: TrialResult) -> Row:
    """Make the row of a trial; docs/how-to/compare-methods.md explains every column."""
    config, plain = trial.config, result.options or trial.method.options
    measured = not result.failed
    reasons = {metric: dict(found) for metric, found in result.not_applicable.items() if found}
    return {
        "forget": trial.forget,
        "scenario": result.scenario or None,
        "forget_samples": result.forget_samples or None,
        "training_seed": config.training.seed,
        "unlearning_seed": config.seed,
        "method": trial.method.name,
        "label": trial.method.label,
        "variant": trial.variant,
        "tuned": trial.method.tuned,
        **{f"option:{name}": json.dumps(value, ensure_ascii=False) for name, value in plain.items()},
        "status": result.status,
        "error": result.error or None,
        "findings": "; ".join(result.findings) or None,
        "remarks": " ".join(result.remarks) or None,
        **{name: getattr(result, name) if measured else None for name in ("changed", "weights", "fraction")},
        **{f"accuracy:{name}": score.accuracy for name, score in result.after.items()},
        **{f"loss:{name}": score.loss for name, score in result.after.items()},
        **{f"original accuracy:{name}": score.accuracy for name, score in result.before.items()},
        **{f"original loss:{name}": score.loss for name, score in result.before.items()},
        **{f"{metric}:{name}": value for metric, found in result.metrics.items() for name, value in found.items()},
        "not_applicable": json.dumps(reasons, ensure_ascii=False) if reasons else None,
        "provider": result.provider or None,
        "versions": result.versions,
        "threads": config.comparison.threads,
        "key": trial.key,
        **{f"seconds:{stage}": value for stage, value in result.seconds.items()},
        **{f"peak_mib:{where}": value for where, value in result.memory.items()},
        "finished": result.finished,
    }


def is_volatile(column: str) -> bool:
    """Whether a column differs between two equal runs: times and memory."""
    return column.startswith(("seconds:", "peak_mib:")) or column == "finished"


def table_of(done: Iterable[tuple[Trial, TrialResult]]) -> tuple[Row, ...]:
    rows = [row_of(trial, result) for trial, result in done]
    columns = _columns(rows)
    return tuple({name: row.get(name) for name in columns} for row in rows)


def csv_of(rows: Iterable[Mapping[str, Any]]) -> str:
    written, out = list(rows), io.StringIO(newline="")
    if written:
        writer = csv.DictWriter(out, fieldnames=list(written[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)
    return out.getvalue()


def _columns(rows: Iterable[Row]) -> list[str]:
    # Columns of one kind stand together, though not every row has them all; times and memory stand last.
    names = dict.fromkeys(name for row in rows for name in row)
    kinds = [*dict.fromkeys(name.split(":")[0] for name in names)]
    return sorted(names, key=lambda name: (is_volatile(name), kinds.index(name.split(":")[0])))


_COUNTS = {"forget_samples", "training_seed", "unlearning_seed", "threads", "changed", "weights"}


@final
@attrs.frozen(kw_only=True)
class Statistic:
    n: int
    mean: float
    sd: float | None
    median: float
    p10: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        numbers = np.asarray(values, dtype=np.float64)
        return cls(
            n=len(numbers),
            mean=float(numbers.mean()),
            sd=float(numbers.std(ddof=1)) if len(numbers) > 1 else None,
            median=float(np.median(numbers)),
            p10=float(np.percentile(numbers, 10)),
            least=float(numbers.min()),
            most=float(numbers.max()),
        )

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.sd is None else f"{self.mean:.3f} ± {self.sd:.3f}"


@final
@attrs.frozen(kw_only=True)
class VariantSummary:
    variant: str
    method: str
    tuned: bool
    trials: int
    failed: int
    measures: Mapping[str, Statistic]
    remarks: str

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "VariantSummary":
        failed = sum(row["status"] != "done" for row in rows)
        kinds = Counter(kind for row in rows if row["findings"] for kind in row["findings"].split("; "))
        kinds += Counter(failed=failed)
        return cls(
            variant=rows[0]["variant"],
            method=rows[0]["method"],
            tuned=rows[0]["tuned"],
            trials=len(rows),
            failed=failed,
            measures=_statistics(rows),
            remarks=", ".join(f"{number} × {kind}" for kind, number in kinds.items()),
        )


def summarise(rows: Iterable[Row]) -> tuple[VariantSummary, ...]:
    """Summarise a table: one summary per variant, in the order of the table."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    return tuple(VariantSummary.of(group) for group in found.values())


def unedited(rows: Iterable[Row]) -> dict[str, Statistic]:
    """Summarise the original models: each forget target and training seed once."""
    originals: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row["status"] == "done":
            own = {name.replace("original ", ""): value for name, value in row.items() if "original " in name}
            originals.setdefault((row["forget"], row["training_seed"]), own)
    return _statistics([*originals.values()])


def long_table(summaries: Iterable[VariantSummary], *, covers: str) -> tuple[Row, ...]:
    return tuple(
        {
            **attrs.asdict(s, filter=attrs.filters.exclude("measures", "remarks")),
            "measure": measure,
            **attrs.asdict(statistic),
            "covers": covers,
        }
        for moment in (False, True)
        for s in summaries
        for measure, statistic in s.measures.items()
        if is_volatile(measure) is moment
    )


def covers(config: Config) -> str:
    """Say what varies between the trials of a variant, and what does not."""
    chosen = config.comparison
    retrained = sorted({*chosen.retrained_seeds, *config.evaluation.retrained_seeds})
    numbers = {
        "forget target": len(chosen.forget) or 1,
        "training seed": len(chosen.training_seeds),
        "unlearning seed": len(chosen.unlearning_seeds),
    }
    over = " × ".join(f"{number} {what}{'s' if number != 1 else ''}" for what, number in numbers.items())
    models = f" and the {len(retrained)} retrained models of each target (training seeds {retrained})"
    same = f"the split of the data, the seeds of the metrics{models if retrained else ''}"
    return f"spread over {over}; the same throughout, and so not in it: {same}"


def _statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Statistic]:
    names = dict.fromkeys(name for row in rows for name in row)
    numbers = {int, float}  # and no bool
    values = {n: [row[n] for row in rows if type(row.get(n)) in numbers] for n in names if n not in _COUNTS}
    return {name: Statistic.of(found) for name, found in values.items() if found}


_TUG, _RETAIN, _FORGET = "tug-of-war:ToW", "accuracy:retain-test", "accuracy:forget-train"
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


def lines_of(
    summaries: Sequence[VariantSummary], original: Mapping[str, Statistic], *, short: bool = False
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
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
    return header, [*first, *(line(s.variant, s.trials, s.measures, _seconds(s), s.remarks) for s in summaries)]


def summary_table(summaries: Sequence[VariantSummary], original: Mapping[str, Statistic]) -> Table:
    header, lines = lines_of(summaries, original, short=True)
    table = compact(None, *header[:-1], wrap=True)  # remarks need more room than there is: `Comparison.remarks`
    for line in lines:
        table.add_row(*line[:-1])
    return table


def summary_page(
    summaries: Sequence[VariantSummary], original: Mapping[str, Statistic], *, rows: Sequence[Row], covers: str
) -> str:
    header, lines = lines_of(summaries, original)
    table = [
        _markdown_row(header),
        _markdown_row([":--" if name in {"variant", "remarks"} else "--:" for name in header]),
        *map(_markdown_row, lines),
    ]
    errors = [f"- {text}" for text in _errors(rows)]
    failed = ["", "## Failed trials", "", *errors] if errors else []
    return "\n".join(["# Comparison", "", *table, "", _covered(covers), "", _NOTE, *failed, ""])


def summary_html(
    summaries: Sequence[VariantSummary], original: Mapping[str, Statistic], *, rows: Sequence[Row], covers: str
) -> str:
    header, lines = lines_of(summaries, original)
    table = page.Table(caption="A click on a heading sorts by it", header=header, rows=tuple(lines))
    return page.render_comparison(table, words=(_covered(covers), _NOTE), failed=_errors(rows))


def _covered(covers: str) -> str:
    return f"Mean ± sample standard deviation: {covers}."


def _errors(rows: Sequence[Row]) -> list[str]:
    return [
        f"{r['variant']}, {r['forget']}, training seed {r['training_seed']}, unlearning seed "
        f"{r['unlearning_seed']}: {' '.join(str(r['error']).split())}"
        for r in rows
        if r["status"] != "done"
    ]


def accuracy_plot(axes: "Axes | None", rows: Sequence[Row]) -> "Axes":
    """Draw mean retain and forget accuracies: a point for each variant, and one for the original models."""
    from unlearnkit.utils.plotting import LOOKS, axes_for, grid, plain  # noqa: PLC0415 - matplotlib takes a second

    axes = axes or axes_for(12)
    points = {s.variant: (LOOKS["unlearned"], s.measures) for s in summarise(rows)}
    for name, (look, found) in {"original": (LOOKS["original"], unedited(rows)), **points}.items():
        if _RETAIN in found and _FORGET in found:
            at = (found[_RETAIN].mean, found[_FORGET].mean)
            axes.plot(*at, color=look.colour, marker=look.marker, linestyle="none")
            axes.annotate(plain(name), at, xytext=(5, 3), textcoords="offset points", size=8)
    axes.set(xlabel="retain accuracy (test)", ylabel="forget accuracy (train)", ylim=(-0.04, 1.04))
    axes.margins(x=0.2)
    grid(axes, "both")
    return axes


def _seconds(summary: VariantSummary) -> str:
    # Evaluation is not part of the price of an edit.
    measures = summary.measures.items()
    stages = [s.median for n, s in measures if n.startswith("seconds:") and n != "seconds:evaluation"]
    return f"{sum(stages):.2f}" if stages else "–"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
