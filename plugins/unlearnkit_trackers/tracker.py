"""What all trackers share: which numbers, figures and page of a run they record."""

import abc
import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnkit import ConfigurationError, Report, Run, hookimpl
from unlearnkit.distributed import Ranks
from unlearnkit.reporting import RunRecord, read_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KNOWN = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "WeightsAndBiases"}  # module: class


class Tracker(abc.ABC):
    """Records each edit as a run of an experiment tracker; register it with a `PluginManager`.

    The edit of a `Pipeline` is recorded with options, seconds, the changed fraction and a plot of the layers. The
    results that ``unlearnkit run``, ``tune`` and ``recommend`` write afterwards go to the same run: scores, metrics, a
    plot of the accuracies, and the report page. With several processes only rank 0 records.
    """

    def __init__(self) -> None:
        self._recorded: dict[str, float] = {}
        self._model = ""  # digest of the edited model of the current run

    @abc.abstractmethod
    def start(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Start a new run; whatever is recorded from now on belongs to it."""

    @abc.abstractmethod
    def record(self, numbers: Mapping[str, float], figures: "Mapping[str, Figure]", page: Path | None) -> None:
        """Add numbers, figures and, where there is one, the report page to the current run."""

    @hookimpl
    def unlearnkit_after_run(self, run: Run, report: Report) -> None:
        """Record an edit."""
        if Ranks.current().rank == 0:
            self._begin(run.method, report, estimator=run.estimator, model=run.model)
            self._add(_numbers(report), {"layers": report})

    @hookimpl
    def unlearnkit_after_write(self, folder: Path) -> None:
        """Record the results of an edit."""
        record, page = read_record(folder), folder / "report.html"
        if not self._model or record.report.model_after != self._model:
            self._begin(record.label, record.report)
        self._add(_numbers(record.report) | _scores(record), {"accuracy": record}, page if page.exists() else None)

    def _begin(self, name: str, report: Report, **about: str) -> None:
        self._recorded, self._model = {}, report.model_after
        self.start(name, {"method": report.method, **about, **report.options})

    def _add(
        self, numbers: dict[str, float], plots: Mapping[str, Report | RunRecord], page: Path | None = None
    ) -> None:
        from matplotlib.figure import Figure  # noqa: PLC0415 - it takes a second

        new = {name: value for name, value in numbers.items() if self._recorded.get(name) != value}
        figures = {name: Figure(figsize=(8, 6), layout="constrained") for name in plots}
        for name, figure in figures.items():
            plots[name].plot(figure.subplots())
        self.record(new, figures, page)
        self._recorded |= new


def _numbers(report: Report) -> dict[str, float]:
    seconds = {f"seconds/{stage}": value for stage, value in report.seconds.items()}
    return {"fraction": report.fraction, "changed": float(report.changed), **seconds}


def _scores(record: RunRecord) -> dict[str, float]:
    """Return every number that was measured, by split or metric."""
    found: dict[str, float | None] = {}
    for model, scores in {"original": record.before, "unlearned": record.after}.items():
        for split, score in scores.items():
            found |= {f"{model}/{split}/accuracy": score.accuracy, f"{model}/{split}/loss": score.loss}
    for metric, values in record.metrics.items():
        found |= {f"metrics/{metric}/{key}": value for key, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


def trackers_of(names: str) -> list[Tracker]:
    """Make the trackers that a list with commas names; raise an error for one that is unknown or not installed."""
    found = []
    for name in filter(None, map(str.strip, names.split(","))):
        if name not in _KNOWN:
            raise ConfigurationError(f"UNLEARNKIT_TRACKERS: expected some of {', '.join(_KNOWN)}, saw {name!r}")
        if find_spec(name) is None:
            raise ConfigurationError(f"tracker {name!r} is not installed: pip install 'unlearnkit[{name}]'")
        found.append(getattr(importlib.import_module(f"unlearnkit_trackers.{name}"), _KNOWN[name])())
    return found
