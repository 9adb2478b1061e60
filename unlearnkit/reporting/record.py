"""The record of one run, and the folder that it is written to: whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs
from torch import nn

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.evaluation.plot_data import PlotData
from unlearnkit.models.checkpoint import save_checkpoint
from unlearnkit.reporting.judgement import Judgement, judge
from unlearnkit.reporting.verdict import verdict
from unlearnkit.unlearning.report import Report, TensorChange
from unlearnkit.utils.errors import ConfigurationError, StoreError
from unlearnkit.utils.files import atomic_folder, atomic_write
from unlearnkit.utils.memory import PeakMemory
from unlearnkit.utils.structuring import structure

FORMAT = "unlearnkit-run-1"


@final
@attrs.frozen(kw_only=True)
class RunRecord:
    """Everything that is known about one edit.

    Attributes:
        label: Name of its folder.
        report: What the method did.
        forget: What was forgotten: scenario, sizes, a hash of the indices.
        before: Split to loss and accuracy of the original model.
        after: The same of the edited model.
        metrics: Metric to its values, of the edited model; None where it does not apply.
        not_applicable: Metric to the reason for each None.
        memory: The most that the process had held when the edit was measured; None where it was not.
        manifest: What two runs must share to give the same bits.
        tuning: How the edit was found, as plain values; None where it was not looked for.
        retrained: Split to the scores of each retrained model.
        views: What the page of the run draws; None where that was not measured.
    """

    label: str
    report: Report
    forget: Mapping[str, Any] = attrs.field(factory=dict)
    before: Mapping[str, LossAndAccuracy] = attrs.field(factory=dict)
    after: Mapping[str, LossAndAccuracy] = attrs.field(factory=dict)
    metrics: Mapping[str, Mapping[str, float | None]] = attrs.field(factory=dict)
    not_applicable: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    memory: PeakMemory | None = None
    manifest: Mapping[str, Any] = attrs.field(factory=dict)
    tuning: Mapping[str, Any] | None = None
    retrained: tuple[Mapping[str, LossAndAccuracy], ...] = ()
    views: PlotData | None = None

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], *, where: str = "report") -> "RunRecord":
        """Read what `to_dict` wrote; keys that are derived, or that another version added, are left out.

        Args:
            plain: From ``report.json``.
            where: For messages: the file.

        Returns:
            The record.

        Raises:
            StoreError: Not a record of a run.
        """
        if plain.get("format") != FORMAT:
            raise StoreError(f"{where}: expected the format {FORMAT!r}, saw {plain.get('format')!r}")
        mine, report = _fields(cls, plain), _fields(Report, plain)
        report["tensors"] = [_fields(TensorChange, t) for t in report.get("tensors", [])]
        try:
            return structure({**mine, "report": report, "memory": plain.get("peak_memory")}, cls, where=where)
        except ConfigurationError as error:
            raise StoreError(f"{error}: the file was changed, or another version wrote it") from error

    def judgement(self) -> Judgement:
        """Say in one sentence what the edit came to; see `judge`.

        Returns:
            The verdict.
        """
        return judge(self.report, self.before, self.after, retrained=self.retrained, views=self.views)

    def sentence(self) -> str:
        """Say what the edit did, what that came to where it was measured (see `verdict`), and what is estimated.

        Returns:
            One sentence or several.
        """
        found = verdict(self.report, self.before, self.after)
        return " ".join([self.report.sentence(), *found, *self.report.uncertainty()])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON.

        Returns:
            Nested dicts; the report's own keys stand at the top.
        """
        judged = self.judgement()
        return {
            "format": FORMAT,
            "label": self.label,
            "sentence": self.sentence(),
            "verdict": {"kind": judged.kind, "sentence": judged.sentence},
            **self.report.to_dict(),
            "forget": dict(self.forget),
            "before": {name: attrs.asdict(score) for name, score in self.before.items()},
            "after": {name: attrs.asdict(score) for name, score in self.after.items()},
            "metrics": {name: dict(values) for name, values in self.metrics.items()},
            "not_applicable": {name: dict(reasons) for name, reasons in self.not_applicable.items()},
            "peak_memory": None if self.memory is None else attrs.asdict(self.memory),
            "manifest": dict(self.manifest),
            "retrained": [{name: attrs.asdict(score) for name, score in each.items()} for each in self.retrained],
            **({} if self.tuning is None else {"tuning": dict(self.tuning)}),
            **({} if self.views is None else {"views": attrs.asdict(self.views)}),
        }


def _fields(kind: type[attrs.AttrsInstance], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: plain[field.name] for field in attrs.fields(kind) if field.name in plain}


def read_record(folder: Path) -> RunRecord:
    """Read the record of a folder of results.

    Args:
        folder: Holds ``report.json``.

    Returns:
        The record.

    Raises:
        StoreError: There is none, or it cannot be read.
    """
    path = folder / "report.json"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read the record of a run from {path}: {error}") from error
    return RunRecord.from_dict(plain if isinstance(plain, dict) else {}, where=str(path))


def write_result(
    folder: Path, model: nn.Module | None, record: RunRecord, *, metadata: Mapping[str, str], page: bool = False
) -> None:
    """Write ``model.safetensors`` and ``report.json`` to a folder that appears only when both are complete.

    The page is written when these are safe: whatever may be wrong with a picture, no result is lost, and
    ``unlearnkit report`` writes the page again.

    Args:
        folder: Where to; a folder that is there already is replaced, see `unlearnkit.utils.files.atomic_folder`.
        model: The edited model; None when there is none, and then no checkpoint is written.
        record: Its record.
        metadata: Text to keep in the checkpoint.
        page: Write ``report.html`` too.

    Raises:
        StoreError: The folder cannot be written.
    """
    try:
        with atomic_folder(folder) as new:
            if model is not None:
                save_checkpoint(model, new / "model.safetensors", metadata)
            text = json.dumps(record.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
            with atomic_write(new / "report.json") as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write the results to {folder}: {error}: nothing was left half-written") from error
    if page:
        from unlearnkit.reporting.page import write_page  # noqa: PLC0415 - matplotlib takes a second

        write_page(folder, record)
