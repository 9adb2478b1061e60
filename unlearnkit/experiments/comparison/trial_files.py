"""Results on disk: one file per trial, which appears whole as the trial ends."""

import json
from pathlib import Path
from typing import final

import attrs

from unlearnkit.experiments.comparison.result import TrialResult
from unlearnkit.experiments.comparison.trial import Trial
from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.files import atomic_write
from unlearnkit.utils.structuring import structure

FORMAT = "unlearnkit-trial-1"


@final
@attrs.frozen(kw_only=True)
class TrialFolder:
    """A folder with a file for each trial that ended, named by the trial's key.

    A changed configuration has other keys: it finds no stale result, and the old files stay where they are.
    """

    folder: Path = attrs.field(converter=Path)

    def path(self, trial: Trial) -> Path:
        """Say where the result of a trial is."""
        return self.folder / f"{trial.key}.json"

    def read(self, trial: Trial) -> TrialResult | None:
        """Read a result."""
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
        """Write a result; it is there whole, and on the disk, or not at all."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self.folder}: {error}") from error
        raw = {"format": FORMAT, "key": trial.key, "trial": trial.name, "result": attrs.asdict(result)}
        with atomic_write(self.path(trial)) as temporary:
            temporary.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
