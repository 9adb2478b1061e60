"""Runs in TensorBoard."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from unlearnkit_trackers.tracker import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@final
class TensorBoard(Tracker):
    """Writes each run to a folder of its own, which ``tensorboard --logdir`` shows; the report page is copied there.

    The folders are made in ``folder``, by default the environment variable ``TENSORBOARD_LOGGING_DIR``, or ``runs``.
    """

    def __init__(self, folder: str | Path = "") -> None:
        super().__init__()
        self.folder = Path(folder or os.environ.get("TENSORBOARD_LOGGING_DIR", "runs"))

    def start(self, name: str, parameters: Mapping[str, Any]) -> None:
        self._run = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09}-{name}"
        with self._writer() as writer:
            writer.add_text("options", f"```json\n{json.dumps(dict(parameters), indent=2, default=str)}\n```")

    def record(self, numbers: Mapping[str, float], figures: "Mapping[str, Figure]", page: Path | None) -> None:
        with self._writer() as writer:
            for name, value in numbers.items():
                writer.add_scalar(name, value)
            for name, figure in figures.items():
                writer.add_figure(name, figure)
        if page is not None:
            shutil.copy(page, self._run)

    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra

        return SummaryWriter(str(self._run))
