"""The record of one edit."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, final

import attrs

from unlearnkit.evaluation import FeatureMeasure
from unlearnkit.evaluation.plot_data import PlotData
from unlearnkit.reporting.recommendation import Recommendation
from unlearnkit.reporting.verdict import Judgement, Scores, findings, judge
from unlearnkit.unlearning.report import Report, TensorChange
from unlearnkit.utils import display
from unlearnkit.utils.errors import ConfigurationError, StoreError
from unlearnkit.utils.files import read_text
from unlearnkit.utils.memory import PeakMemory
from unlearnkit.utils.structuring import structure
from unlearnkit.utils.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = "unlearnkit-run-1"


@final
@attrs.frozen(kw_only=True, repr=False)
class RunRecord:
    """The results of one edit; a notebook shows the verdict, the scores and a bar for each layer.

    ``forget`` describes the forget set: scenario, sizes, a hash of the indices. ``before``, ``after`` and each of
    ``retrained`` map splits to scores. ``metrics`` has the values of each metric, and ``not_applicable`` the reason for
    each None, or in what way a value is a bound. ``features`` are the measures of what the model holds below its
    outputs. ``manifest`` is what two runs must share to give the same bits, and ``views`` the plot data of the page.
    """

    label: str
    report: Report
    forget: Mapping[str, Any] = attrs.field(factory=dict)
    before: Scores = attrs.field(factory=dict)
    after: Scores = attrs.field(factory=dict)
    metrics: Mapping[str, Mapping[str, float | None]] = attrs.field(factory=dict)
    not_applicable: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    features: tuple[FeatureMeasure, ...] = ()
    memory: PeakMemory | None = None
    manifest: Mapping[str, Any] = attrs.field(factory=dict)
    tuning: Mapping[str, Any] | None = None
    recommendation: Recommendation | None = None
    retrained: tuple[Scores, ...] = ()
    views: PlotData | None = None

    def __repr__(self) -> str:
        return f"RunRecord({self.label!r}, {self.report!r})"

    def _repr_html_(self) -> str:
        models = ("original", "unlearned", "retrained")
        rows = ((row["split"], *(number(row[f"{each} accuracy"]) for each in models)) for row in self._rows())
        scores = display.table(("accuracy on", *models), rows)
        return display.paragraphs(self.judgement().sentence) + scores + self.report._repr_html_()

    def _rows(self) -> list[dict[str, Any]]:
        """Accuracy and loss on each split."""
        rows = []
        for split, after in self.after.items():
            row: dict[str, Any] = {"split": split}
            for what in ("accuracy", "loss"):
                retrained = [getattr(each[split], what) for each in self.retrained if split in each]
                known = [value for value in retrained if value is not None]
                row[f"original {what}"] = getattr(self.before.get(split), what, None)
                row[f"unlearned {what}"] = getattr(after, what)
                row[f"retrained {what}"] = fmean(known) if known else None
            rows.append(row)
        return rows

    def to_frame(self) -> Any:
        """Return a pandas data frame with a row for each split: accuracy and loss, retrained models as their mean."""
        return display.frame(self._rows())

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the accuracies on matplotlib axes, new ones by default; return them."""
        from unlearnkit.reporting import plots  # noqa: PLC0415 - matplotlib takes a second
        from unlearnkit.utils.plotting import axes_for  # noqa: PLC0415

        return plots.accuracy_bars(axes or axes_for(3 * len(self.after)), self.before, self.after, self.retrained)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], *, where: str = "report") -> "RunRecord":
        """Read what `to_dict` wrote; ignore keys that are derived or that another version added."""
        if plain.get("format") != FORMAT:
            raise StoreError(f"{where}: expected the format {FORMAT!r}, saw {plain.get('format')!r}")
        mine, report = _fields(cls, plain), _report(plain, where=where)
        try:
            return structure({**mine, "report": report, "memory": plain.get("peak_memory")}, cls, where=where)
        except ConfigurationError as error:
            raise StoreError(f"{error}: the file was changed, or another version wrote it") from error

    @property
    def nothing_edited(self) -> bool:
        """Whether a search left the model as it was; see `unlearnkit.evaluation.tuning.Tuning`."""
        if self.recommendation is not None:
            return self.recommendation.best is None
        return self.tuning is not None and self.tuning.get("chosen") is None

    def judgement(self) -> Judgement:
        """Return the verdict; see `judge`."""
        return judge(
            self.report,
            self.before,
            self.after,
            retrained=self.retrained,
            views=self.views,
            features=self.features,
            whole_class=self.forget.get("scenario") == "full-class",
        )

    def sentence(self) -> str:
        """What the edit did, its `findings`, and how uncertain its importances are."""
        found = findings(self.report, self.before, self.after)
        return " ".join([self.report.sentence(), *found.values(), *self.report.uncertainty()])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the report's own keys at the top level."""
        judged = self.judgement()
        plain = attrs.asdict(self, filter=attrs.filters.exclude("label", "report"))
        return {
            "format": FORMAT,
            "label": self.label,
            "sentence": self.sentence(),
            "verdict": {key: getattr(judged, key) for key in ("kind", "says", "holds", "sentence")},
            **self.report.to_dict(),
            "peak_memory": plain.pop("memory"),
            "retrained": list(plain.pop("retrained")),
            "features": list(plain.pop("features")),
            **{name: value for name, value in plain.items() if value is not None},
        }


def _fields(kind: type[attrs.AttrsInstance], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: plain[field.name] for field in attrs.fields(kind) if field.name in plain}


def _report(plain: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return the fields of a report and of its steps, without what is derived."""
    for key in ("tensors", "steps"):
        tables = plain.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise StoreError(f"{where}: expected a list of tables as {key}, saw {str(tables)[:80]}")
    return {
        **_fields(Report, plain),
        "tensors": [_fields(TensorChange, tensor) for tensor in plain.get("tensors", [])],
        "steps": [_report(step, where=where) for step in plain.get("steps", [])],
    }


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def read_record(folder: Path | str) -> RunRecord:
    """Read ``report.json`` from a folder of results, or raise `StoreError`."""
    path = Path(folder) / "report.json"
    try:
        plain = json.loads(read_text(path), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read the record of a run from {path}: {error}") from error
    return RunRecord.from_dict(plain if isinstance(plain, dict) else {}, where=str(path))
