"""Mean, spread and words per variant: what the seeds and forget targets of a comparison come to."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, final

import attrs
import numpy as np

from unlearnkit.experiments.comparison.table import Row, is_of_the_moment
from unlearnkit.experiments.config import Config

_COUNTS = {"forget_samples", "training_seed", "unlearning_seed", "threads", "changed", "weights"}


@final
@attrs.frozen(kw_only=True)
class Statistic:
    """A measure over several trials.

    Attributes:
        n: How many trials have a value.
        mean: Of the values.
        sd: Sample standard deviation, n − 1 in the denominator; None for one value.
        median: Of the values.
        p10: 10th percentile, linear between values.
        least: The smallest.
        most: The largest.
    """

    n: int
    mean: float
    sd: float | None
    median: float
    p10: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Count up.

        Args:
            values: One at least.

        Returns:
            The statistic.

        Example:
            >>> found = Statistic.of([1.0, 2.0, 3.0])
            >>> found.mean, found.sd, found.median, found.p10
            (2.0, 1.0, 2.0, 1.2)
        """
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
    """What one variant came to over all forget targets and seeds.

    Attributes:
        variant: Label and options.
        method: Name.
        tuned: Whether its options were looked for.
        trials: How many ended, failed ones included.
        failed: How many failed.
        measures: Column of the table to its statistic; columns without a single number are left out.
        remarks: How many trials changed nothing, were destroyed, failed, …
    """

    variant: str
    method: str
    tuned: bool
    trials: int
    failed: int
    measures: Mapping[str, Statistic]
    remarks: str

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "VariantSummary":
        """Summarise.

        Args:
            rows: Of one variant, one at least.

        Returns:
            The summary.
        """
        kinds = Counter(kind for row in rows if row["findings"] for kind in row["findings"].split("; "))
        failed = sum(row["status"] != "done" for row in rows)
        kinds += Counter({"failed": failed})
        return cls(
            variant=rows[0]["variant"],
            method=rows[0]["method"],
            tuned=rows[0]["tuned"],
            trials=len(rows),
            failed=failed,
            measures=_measures(rows),
            remarks=", ".join(f"{number} × {kind}" for kind, number in kinds.items()),
        )


def summarise(rows: Iterable[Row]) -> tuple[VariantSummary, ...]:
    """Summarise a table, one variant after the other in the order of the table.

    Args:
        rows: Of the whole table.

    Returns:
        One summary per variant.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    return tuple(VariantSummary.of(group) for group in found.values())


def unedited(rows: Iterable[Row]) -> dict[str, Statistic]:
    """Summarise the original models: each forget target and training seed once, however many edits it had."""
    first = {(r["forget"], r["training_seed"]): r for r in reversed([*rows]) if r["status"] == "done"}
    originals = [
        {n.replace("original ", ""): v for n, v in row.items() if "original " in n} for row in reversed(first.values())
    ]
    return _measures(originals)


def long_table(summaries: Iterable[VariantSummary], *, covers: str) -> tuple[Row, ...]:
    """Write summaries as a tidy table: one row for each variant and measure."""
    return tuple(
        {
            "variant": s.variant,
            "method": s.method,
            "tuned": s.tuned,
            "trials": s.trials,
            "failed": s.failed,
            "measure": measure,
            **attrs.asdict(statistic),
            "covers": covers,
        }
        for moment in (False, True)
        for s in summaries
        for measure, statistic in s.measures.items()
        if is_of_the_moment(measure) is moment
    )


def covers(config: Config) -> str:
    """Say what the spread of a comparison is over, and what it is not."""
    chosen = config.comparison
    retrained = sorted({*chosen.retrained_seeds, *config.evaluation.retrained_seeds})
    over = [
        _count(len(chosen.forget) or 1, "forget target"),
        _count(len(chosen.training_seeds), "training seed"),
        _count(len(chosen.unlearning_seeds), "unlearning seed"),
    ]
    models = f"and the {len(retrained)} retrained models of each target (training seeds {retrained})"
    fixed = models if retrained else ""
    return (
        f"spread over {' × '.join(over)}; the same throughout, and so not in it: the split of the data, the seeds of "
        f"the metrics {fixed}".rstrip()
    )


def _measures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Statistic]:
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if _is_number(row.get(name))] for name in names if name not in _COUNTS}
    return {name: Statistic.of(found) for name, found in values.items() if found}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
