"""The results of trials, one JSON file each."""

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.experiments.comparison.trial import Trial, digest_of
from unlearnkit.experiments.provenance import versions
from unlearnkit.reporting import RunRecord
from unlearnkit.reporting.verdict import findings
from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.files import atomic_write
from unlearnkit.utils.structuring import structure

FORMAT = "unlearnkit-trial-1"


@final
@attrs.frozen(kw_only=True)
class TrialResult:
    """The result of a trial: plain values, which survive JSON without loss."""

    status: str = "done"
    error: str = ""
    options: Mapping[str, Any] = attrs.field(factory=dict)
    provider: str = ""
    changed: int = 0
    weights: int = 0
    scenario: str = ""
    forget_samples: int = 0
    before: Mapping[str, LossAndAccuracy] = attrs.field(factory=dict)
    after: Mapping[str, LossAndAccuracy] = attrs.field(factory=dict)
    metrics: Mapping[str, Mapping[str, float | None]] = attrs.field(factory=dict)
    not_applicable: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    findings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    seconds: Mapping[str, float] = attrs.field(factory=dict)
    memory: Mapping[str, float] = attrs.field(factory=dict)
    versions: str = attrs.field(factory=lambda: digest_of(versions())[:12])
    finished: str = attrs.field(factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))

    @property
    def failed(self) -> bool:
        """Whether the trial ended with an error."""
        return self.status != "done"

    @property
    def fraction(self) -> float:
        """Changed weights as a fraction of all, 0 to 1."""
        return self.changed / self.weights if self.weights else 0.0

    @classmethod
    def of(cls, record: RunRecord, *, weights: int, no_candidate: bool = False) -> "TrialResult":
        """Make the result of an evaluated edit; ``no_candidate``: tuning found none within its budget."""
        report = record.report
        found = findings(report, record.before, record.after)
        nothing = "no candidate" if no_candidate else "nothing changed"
        plain = report.to_dict()
        return cls(
            options=plain["options"],
            provider=report.provider,
            changed=report.changed,
            weights=weights,
            scenario=record.forget["scenario"],
            forget_samples=record.forget["samples"],
            before=record.before,
            after=record.after,
            metrics=record.metrics,
            not_applicable=record.not_applicable,
            findings=(*([nothing] if not report.changed else []), *(f.kind for f in found)),
            remarks=tuple(dict.fromkeys([record.sentence(), *report.remarks])),
            seconds=report.seconds,
        )

    @classmethod
    def failure(cls, error: BaseException | str) -> "TrialResult":
        """Make the result of a trial that ended with an error."""
        if isinstance(error, str):
            return cls(status="failed", error=error)
        said = "\n".join([str(error) or "no message", *getattr(error, "__notes__", [])])
        return cls(status="failed", error=f"{type(error).__name__}: {said}")


@final
@attrs.frozen(kw_only=True)
class TrialFolder:
    """A folder with one file for each finished trial, named after the trial's key.

    A changed configuration has other keys, so it never reads a stale result; the old files stay.
    """

    folder: Path = attrs.field(converter=Path)

    def path(self, trial: Trial) -> Path:
        """Return where the result of a trial is, or will be."""
        return self.folder / f"{trial.key}.json"

    def read(self, trial: Trial) -> TrialResult | None:
        """Read a result; None where there is no file."""
        path = self.path(trial)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} is damaged: {error}: delete it, and the trial is done again") from error
        if not isinstance(raw, dict) or (raw.get("format"), raw.get("key")) != (FORMAT, trial.key):
            raise StoreError(f"{path} is not the result of {trial.name!r}: delete it, and the trial is done again")
        return structure(raw["result"], TrialResult, where=str(path))

    def write(self, trial: Trial, result: TrialResult) -> None:
        """Write a result atomically."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self.folder}: {error}") from error
        raw = {"format": FORMAT, "key": trial.key, "trial": trial.name, "result": attrs.asdict(result)}
        with atomic_write(self.path(trial)) as temporary:
            temporary.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
