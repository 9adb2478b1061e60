"""Units of work: what one process does in one go, and what it tells while it does."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, final

import attrs

from unlearnkit.experiments.comparison.trial import Trial
from unlearnkit.experiments.comparison.trial_files import TrialFolder
from unlearnkit.experiments.comparison.worker import Worker


@final
@attrs.frozen(kw_only=True)
class Event:
    """Something that happened in a comparison.

    Attributes:
        kind: ``"started"``, ``"done"`` or ``"failed"``.
        name: Of the trial, or of the model that is trained.
        key: Of the trial; "" for a model.
        process: Number of the process.
    """

    kind: Literal["started", "done", "failed"]
    name: str
    key: str = ""
    process: int = attrs.field(factory=os.getpid)


Watch = Callable[[Event], None]
"""Is told what happens."""


def unseen(_: Event) -> None:
    """Watch nothing."""


@final
@attrs.frozen(kw_only=True)
class Unit:
    """A model to train, or trials that share their importances."""

    trials: tuple[Trial, ...]
    folder: Path
    model: str = ""
    seed: int | None = None

    @property
    def name(self) -> str:
        """Return what a person calls a model to train."""
        forget, training, _ = self.trials[0].group
        if self.model == "original":
            return f"original · training seed {training}"
        return f"retrained without {forget} · training seed {self.seed}"

    def do(self, bench: Worker, tell: Watch) -> None:
        """Do the work; results are on disk when a trial's end is told."""
        if self.model:
            self._train(bench, tell)
            return
        rows = TrialFolder(folder=self.folder)
        for trial in self.trials:
            tell(Event(kind="started", name=trial.name, key=trial.key))
            result = bench.do(trial)
            rows.write(trial, result)
            tell(Event(kind="failed" if result.failed else "done", name=trial.name, key=trial.key))

    def _train(self, bench: Worker, tell: Watch) -> None:
        tell(Event(kind="started", name=self.name))
        try:
            bench.train(self.trials[0], self.seed)
        except Exception:  # noqa: BLE001 - the trials that need the model meet the same error, and it is their result
            tell(Event(kind="failed", name=self.name))
        else:
            tell(Event(kind="done", name=self.name))


def models_for(trials: Sequence[Trial], folder: Path) -> tuple[Unit, ...]:
    """List the models that trials need, each once."""
    originals: dict[int, Unit] = {}
    retrained: dict[tuple[str, int], Unit] = {}
    for trial in trials:
        one = Unit(trials=(trial,), folder=folder, model="original")
        originals.setdefault(trial.config.training.seed, one)
        for seed in trial.config.evaluation.retrained_seeds:
            retrained.setdefault((trial.forget, seed), attrs.evolve(one, model="retrained", seed=seed))
    return (*originals.values(), *retrained.values())


def groups_of(trials: Iterable[Trial], folder: Path, *, jobs: int) -> tuple[Unit, ...]:
    """Cut trials into units: those that share importances together, in smaller parts where processes would idle."""
    groups: dict[tuple[str, int, int], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.group, []).append(trial)
    parts = max(1, -(-jobs // len(groups))) if groups else 1
    return tuple(
        Unit(trials=tuple(group[i::parts]), folder=folder)
        for group in groups.values()
        for i in range(min(parts, len(group)))
    )
