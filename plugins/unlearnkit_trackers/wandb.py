"""Runs in Weights & Biases."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from unlearnkit_trackers.tracker import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@final
class WeightsAndBiases(Tracker):
    """Logs to the project ``WANDB_PROJECT``, or ``unlearnkit``; the page is shown as a panel.

    A run is finished when the next one starts, when its page is logged, or at exit.
    """

    _run: Any = None

    def start(self, name: str, parameters: Mapping[str, Any]) -> None:
        import wandb  # noqa: PLC0415 - an extra

        self._finish()
        project = os.environ.get("WANDB_PROJECT", "unlearnkit")
        self._run = wandb.init(project=project, name=name, config=dict(parameters), reinit="create_new")

    def record(self, numbers: Mapping[str, float], figures: "Mapping[str, Figure]", page: Path | None) -> None:
        import wandb  # noqa: PLC0415

        importlib.import_module("matplotlib.pyplot")  # wandb.Image fails without it
        media: dict[str, Any] = {name: wandb.Image(figure) for name, figure in figures.items()}
        if page is not None:
            media["report"] = wandb.Html(str(page), inject=False)
        self._run.log({**numbers, **media})
        if page is not None:
            self._finish()

    def _finish(self) -> None:
        if self._run is not None:
            self._run.finish()
        self._run = None
