"""The trials of a comparison, one edit each, and their results, one JSON file each."""

import datetime as dt
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import attrs

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.evaluation.model_outputs import SPLITS
from unlearnkit.experiments.config import Config, ForgetConfig, MethodConfig
from unlearnkit.experiments.provenance import digest_of, versions
from unlearnkit.reporting import RunRecord
from unlearnkit.reporting.verdict import findings
from unlearnkit.utils.errors import ConfigurationError, StoreError
from unlearnkit.utils.files import read_text, write_text
from unlearnkit.utils.structuring import structure

FORMAT = "unlearnkit-trial-1"


@final
@attrs.frozen(kw_only=True)
class Trial:
    """One edit of a comparison: ``config`` has one method, one forget target and the seeds of this trial."""

    config: Config
    forget: str
    variant: str
    key: str = ""  # digest of everything that the result depends on

    @property
    def method(self) -> MethodConfig:
        return self.config.method[0]

    @property
    def group(self) -> tuple[str, int, int]:
        """Forget target, training seed and unlearning seed: trials that share them share their importances."""
        return self.forget, self.config.training.seed, self.config.seed

    @property
    def name(self) -> str:
        forget, training, unlearning = self.group
        return f"{self.variant} · {forget} · training seed {training} · unlearning seed {unlearning}"


def trials_of(config: Config) -> tuple[Trial, ...]:
    """List the trials of a comparison; trials that share their importances are neighbours."""
    chosen = config.comparison
    targets = chosen.forget or (config.forget,)
    _refuse(config, targets)
    methods = [variant for method in config.method for variant in variants(method)]
    return tuple(
        Trial(config=_one(config, target, method, *seeds), forget=forget_text(target), variant=variant)
        for target, *seeds, (variant, method) in itertools.product(
            targets, chosen.training_seeds, chosen.unlearning_seeds, methods
        )
    )


def variants(method: MethodConfig) -> Iterator[tuple[str, MethodConfig]]:
    """List the points of a method's grid, as ``"ssd alpha=1 lam=1"``."""
    for values in itertools.product(*method.grid.values()):
        point = dict(zip(method.grid, values, strict=True))
        shown = (f"{key}={v:g}" if isinstance(v, float) else f"{key}={v}" for key, v in point.items())
        yield " ".join([method.label, *shown]), attrs.evolve(method, options={**method.options, **point}, grid={})


def forget_text(target: ForgetConfig) -> str:
    """Name a forget target, as ``"classes=3,7"``."""
    if target.indices:
        return f"indices={len(target.indices)}:{digest_of(target.indices)[:6]}"
    shown = {
        key: Path(v).name if isinstance(v, str) else ",".join(map(str, v)) if isinstance(v, tuple) else str(v)
        for key, v in target.given.items()
    }
    return " ".join(f"{key}={value}" for key, value in shown.items())


def keyed(trial: Trial, facts: Mapping[str, Any]) -> Trial:
    """Set a trial's key: the digest of all but labels, the output folder and options that change only the speed."""
    config = trial.config
    decides = {
        "model": [config.model.source, config.model.options],
        "data": [config.data.name, config.data.factory, config.data.options],
        "training": attrs.asdict(config.training),
        "importance": attrs.asdict(
            config.importance, filter=lambda field, _: field.name not in {"checkpoint", "every"}
        ),
        "normalise": trial.method.normalise,
        "max_fraction": trial.method.max_fraction,
        **{key: some for key in ("only", "exclude") if (some := getattr(trial.method, key))},
        **({"fixed": sorted(trial.method.fixed)} if trial.method.tuned else {}),
        "tuning": attrs.asdict(config.tuning) if trial.method.tuned or config.tuning.target == "unseen" else None,
        "evaluation": attrs.asdict(attrs.evolve(config.evaluation, retrained_folder="")),
        "objective": attrs.asdict(config.objective),
        "seed": config.seed,
        "threads": config.comparison.threads,
        **facts,
    }
    return attrs.evolve(trial, key=digest_of(decides))


def _one(config: Config, target: ForgetConfig, method: MethodConfig, training: int, unlearning: int) -> Config:
    chosen, measured = config.comparison, config.evaluation
    evaluation = attrs.evolve(
        measured,
        splits=SPLITS,
        metrics=tuple(dict.fromkeys([*chosen.metrics, *measured.metrics])),
        retrained_seeds=tuple(dict.fromkeys([*chosen.retrained_seeds, *measured.retrained_seeds])),
    )
    return attrs.evolve(
        config,
        forget=target,
        method=(method,),
        evaluation=evaluation,
        importance=attrs.evolve(config.importance, checkpoint=""),  # a trial writes its result when it ends
        tuning=attrs.evolve(config.tuning, method=""),
        training=attrs.evolve(config.training, seed=training),
        seed=unlearning,
    )


def _refuse(config: Config, targets: tuple[ForgetConfig, ...]) -> None:
    if not config.method:
        raise ConfigurationError("method: expected at least one [[method]], saw none: `unlearnkit methods` lists them")
    texts = [forget_text(target) for target in targets]
    if len(targets) > 1 and any(target.corrupted for target in targets):
        raise ConfigurationError(
            "comparison.forget: expected corrupted alone, which changes the data, saw other targets"
        )
    if "" in texts:
        raise ConfigurationError("comparison.forget: expected what to forget, saw nothing: or set [forget]")
    labels = [label for method in config.method for label, _ in variants(method)]
    for what, names in (("comparison.forget", texts), ("method", labels)):
        again = sorted({name for name in names if names.count(name) > 1})
        if again:
            raise ConfigurationError(f"{what}: expected each once, saw {again} more than once")
    if config.evaluation.retrained:
        raise ConfigurationError(
            "evaluation.retrained: checkpoints fit one forget target: set comparison.retrained_seeds, and they are made"
        )
    if not config.comparison.training_seeds or not config.comparison.unlearning_seeds:
        raise ConfigurationError("comparison: expected at least one training seed and one unlearning seed, saw none")


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
        return self.status != "done"

    @property
    def fraction(self) -> float:
        return self.changed / self.weights if self.weights else 0.0

    @classmethod
    def of(cls, record: RunRecord, *, weights: int) -> "TrialResult":
        """Make the result of an evaluated edit."""
        report = record.report
        found = findings(report, record.before, record.after)
        nothing = "no candidate" if record.nothing_edited else "nothing changed"
        return cls(
            options=report.to_dict()["options"],
            provider=report.provider,
            changed=report.changed,
            weights=weights,
            scenario=record.forget["scenario"],
            forget_samples=record.forget["samples"],
            before=record.before,
            after=record.after,
            metrics=record.metrics,
            not_applicable=record.not_applicable,
            findings=(*([nothing] if not report.changed else []), *found),
            remarks=tuple(dict.fromkeys([record.sentence(), *report.remarks])),
            seconds=report.seconds,
        )

    @classmethod
    def failure(cls, error: BaseException | str) -> "TrialResult":
        if isinstance(error, str):
            return cls(status="failed", error=error)
        message = "\n".join([str(error) or "no message", *getattr(error, "__notes__", [])])
        return cls(status="failed", error=f"{type(error).__name__}: {message}")


def read_result(folder: Path, trial: Trial) -> TrialResult | None:
    """Read a trial's result, whose file is named after the trial's key; None where there is no file."""
    path = folder / f"{trial.key}.json"
    try:
        raw = json.loads(read_text(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, StoreError) as error:
        raise StoreError(f"{path} is damaged: {error}: delete it, and the trial is done again") from error
    if not isinstance(raw, dict) or (raw.get("format"), raw.get("key")) != (FORMAT, trial.key):
        raise StoreError(f"{path} is not the result of {trial.name!r}: delete it, and the trial is done again")
    return structure(raw.get("result"), TrialResult, where=str(path))


def write_result(folder: Path, trial: Trial, result: TrialResult) -> None:
    raw = {"format": FORMAT, "key": trial.key, "trial": trial.name, "result": attrs.asdict(result)}
    write_text(folder / f"{trial.key}.json", json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
