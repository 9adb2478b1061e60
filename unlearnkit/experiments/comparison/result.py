"""What came of a trial: numbers, reasons and words, or the error that it ended with."""

import datetime as dt
from collections.abc import Mapping
from typing import Any, final

import attrs

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.experiments.comparison.trial import digest_of
from unlearnkit.experiments.provenance import versions
from unlearnkit.reporting import RunRecord
from unlearnkit.reporting.verdict import findings


@final
@attrs.frozen(kw_only=True)
class TrialResult:
    """What came of a trial; plain values, so that it is written as JSON and read again without loss.

    Attributes:
        status: ``"done"`` or ``"failed"``.
        error: Of a failed trial, in words; it has nothing else.
        options: The method's options, those that tuning chose included.
        provider: Distribution and version that the method comes from.
        changed: How many weights have other bits than before.
        weights: How many trainable weights the model has.
        scenario: ``"full-class"``, ``"sub-class"`` or ``"random"``.
        forget_samples: Size of the forget set.
        before: Split to loss and accuracy of the original model.
        after: The same of the edited model.
        metrics: Metric to its values; None where it does not apply.
        not_applicable: Metric to the reason for each None.
        findings: Kinds of what a reader must not overlook, as ``"nothing changed"``.
        remarks: Sentences: what the edit did, findings with their numbers, remarks of the method, warnings.
        seconds: Stage to wall-clock seconds; a stage that several trials share has the same seconds in each.
        memory: ``"host"`` and ``"cuda"`` to the peak in MiB.
        versions: Digest of the versions of Python and of the packages that decide the bits.
        finished: UTC.
    """

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
        """Return whether the trial ended with an error."""
        return self.status != "done"

    @property
    def fraction(self) -> float:
        """Return changed weights as a fraction of all, 0 to 1."""
        return self.changed / self.weights if self.weights else 0.0

    @classmethod
    def of(cls, record: RunRecord, *, weights: int, no_candidate: bool = False) -> "TrialResult":
        """Take over a record.

        Args:
            record: Of the edit, evaluated.
            weights: How many trainable weights the model has.
            no_candidate: Whether tuning found nothing within its budget.

        Returns:
            The result, without memory.
        """
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
        """Say what a trial ended with.

        Args:
            error: What was raised, or a sentence.

        Returns:
            The result.
        """
        if isinstance(error, str):
            return cls(status="failed", error=error)
        said = "\n".join([str(error) or "no message", *getattr(error, "__notes__", [])])
        return cls(status="failed", error=f"{type(error).__name__}: {said}")
