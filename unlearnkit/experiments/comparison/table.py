"""The tidy table: one row per trial, and every column explained in docs/how-to/compare-methods.md."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from unlearnkit.experiments.comparison.result import TrialResult
from unlearnkit.experiments.comparison.trial import Trial

Row = dict[str, Any]
Done = tuple[Trial, TrialResult]


def row_of(trial: Trial, result: TrialResult) -> Row:
    """Make the row of a trial."""
    config, plain = trial.config, result.options or trial.method.options
    measured = not result.failed
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
        "changed": result.changed if measured else None,
        "weights": result.weights if measured else None,
        "fraction": result.fraction if measured else None,
        **{f"accuracy:{name}": score.accuracy for name, score in result.after.items()},
        **{f"loss:{name}": score.loss for name, score in result.after.items()},
        **{f"original accuracy:{name}": score.accuracy for name, score in result.before.items()},
        **{f"original loss:{name}": score.loss for name, score in result.before.items()},
        **{f"{metric}:{name}": value for metric, found in result.metrics.items() for name, value in found.items()},
        "not_applicable": _reasons(result),
        "provider": result.provider or None,
        "versions": result.versions,
        "threads": config.comparison.threads,
        "key": trial.key,
        **{f"seconds:{stage}": value for stage, value in result.seconds.items()},
        **{f"peak_mib:{where}": value for where, value in result.memory.items()},
        "finished": result.finished,
    }


def is_of_the_moment(column: str) -> bool:
    """Say whether a column differs between two equal runs: times and memory."""
    return column.startswith(("seconds:", "peak_mib:")) or column == "finished"


def table_of(done: Iterable[Done]) -> tuple[Row, ...]:
    """Make the table."""
    rows = [row_of(trial, result) for trial, result in done]
    columns = _columns(rows)
    return tuple({name: row.get(name) for name in columns} for row in rows)


def csv_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as CSV, numbers in full."""
    written, out = list(rows), io.StringIO(newline="")
    if written:
        writer = csv.DictWriter(out, fieldnames=list(written[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)
    return out.getvalue()


def _columns(rows: Iterable[Row]) -> list[str]:
    # Columns of one kind stand together, though not every row has them all; what is of the moment stands last.
    kinds: dict[str, dict[str, None]] = {}
    for row in rows:
        for name in row:
            kinds.setdefault(name.split(":")[0], {})[name] = None
    names = [name for kind in kinds.values() for name in kind]
    return sorted(names, key=is_of_the_moment)


def _reasons(result: TrialResult) -> str | None:
    reasons = {metric: dict(found) for metric, found in result.not_applicable.items() if found}
    return json.dumps(reasons, ensure_ascii=False) if reasons else None
