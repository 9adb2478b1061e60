"""Train the original model that a configuration describes."""

import json
from pathlib import Path
from typing import Any

import attrs

from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.experiments.config import Config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.models.checkpoint import save_checkpoint
from unlearnkit.models.training import train
from unlearnkit.utils.errors import ConfigurationError, StoreError
from unlearnkit.utils.files import write_text
from unlearnkit.utils.progress import Progress, silent


def train_original(config: Config, *, overwrite: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Train the model of a configuration on the full training set, and write its checkpoint.

    Args:
        config: ``model.checkpoint`` is the file to write; a record is written beside it, with the suffix ``.json``.
        overwrite: Replace an existing checkpoint.
        progress: Shows a bar for each epoch.

    Returns:
        The record: loss and accuracy of each epoch, of the test set, and the manifest.

    Raises:
        ConfigurationError: The configuration names no checkpoint.
        StoreError: The checkpoint exists already.
    """
    if not config.model.checkpoint:
        raise ConfigurationError("model.checkpoint: expected a file to write the trained model to, saw none")
    path = Path(config.model.checkpoint)
    if path.exists() and not overwrite:
        raise StoreError(f"{path} is there already: choose another checkpoint, or overwrite it")
    experiment = Experiment.load(config)
    model = experiment.fresh_model()
    objective = experiment.objective
    history = train(model, experiment.bundle.train, objective=objective, training=config.training, progress=progress)
    batches = experiment.evaluation_batches(experiment.bundle.test)
    test = loss_and_accuracy(model, batches, objective=objective, progress=progress)
    record = {
        "format": "unlearnkit-training-1",
        "epochs": [attrs.asdict(epoch) for epoch in history],
        "test": attrs.asdict(test),
        "manifest": experiment.manifest(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, path, {"unlearnkit.factory": config.model.factory})
    write_text(path.with_suffix(".json"), json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record
