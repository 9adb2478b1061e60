"""Runs in TensorBoard, MLflow or Weights & Biases: the environment variable UNLEARNKIT_TRACKERS names those to use.

Without it this plugin has no hooks: the model is copied for each call of an observer.
"""

import os
from pathlib import Path

from unlearnkit import Report, Run, hookimpl

if os.environ.get("UNLEARNKIT_TRACKERS"):
    from unlearnkit_trackers.tracker import trackers_of

    _trackers = trackers_of(os.environ["UNLEARNKIT_TRACKERS"])

    @hookimpl
    def unlearnkit_after_run(run: Run, report: Report) -> None:
        for tracker in _trackers:
            tracker.unlearnkit_after_run(run, report)

    @hookimpl
    def unlearnkit_after_write(folder: Path) -> None:
        for tracker in _trackers:
            tracker.unlearnkit_after_write(folder)
