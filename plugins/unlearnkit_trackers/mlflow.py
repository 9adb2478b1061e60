"""Runs in MLflow."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from unlearnkit_trackers.tracker import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@final
class MLflow(Tracker):
    """Logs to the experiment ``MLFLOW_EXPERIMENT_NAME``, or ``unlearnkit``, at ``MLFLOW_TRACKING_URI``."""

    def start(self, name: str, parameters: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415 - an extra

        experiment, self._client = os.environ.get("MLFLOW_EXPERIMENT_NAME", "unlearnkit"), MlflowClient()
        known = self._client.get_experiment_by_name(experiment)
        place = self._client.create_experiment(experiment) if known is None else known.experiment_id
        self._run = self._client.create_run(place, run_name=name).info.run_id
        for key, value in parameters.items():
            self._client.log_param(self._run, key, value)

    def record(self, numbers: Mapping[str, float], figures: "Mapping[str, Figure]", page: Path | None) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self._run, re.sub(r"[^\w\-./: ]", "_", name), value)
        for name, figure in figures.items():
            self._client.log_figure(self._run, figure, f"{name}.png")
        if page is not None:
            self._client.log_artifact(self._run, str(page))
        self._client.set_terminated(self._run)  # more may be logged later
