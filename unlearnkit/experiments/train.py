"""Trains models of an experiment: the original, and models retrained without the forget set, cached by their recipe."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs
import torch
from filelock import FileLock
from torch import nn
from torch.utils.data import Dataset

from unlearnkit.data import LabelledImages
from unlearnkit.distributed import Ranks
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.experiments.config import Config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.provenance import data_digest, versions
from unlearnkit.models import (
    CrossEntropy,
    Objective,
    Training,
    digest,
    load_checkpoint,
    save_checkpoint,
    train,
    trainable,
)
from unlearnkit.utils.errors import ConfigurationError, StoreError, UnlearnKitError
from unlearnkit.utils.files import read_text, write_text
from unlearnkit.utils.progress import Progress, silent

RECIPE = "unlearnkit.recipe"
"""Key of a cached model's metadata: its recipe as JSON."""


_FORMAT = "unlearnkit-training-1"


def train_original(config: Config, *, overwrite: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Train the model of a configuration on the full training set, and write ``model.checkpoint``.

    Returns a record of the scores of each epoch and of the test set, which is written beside it as ``.json``.
    """
    if not config.model.checkpoint:
        raise ConfigurationError("model.checkpoint: expected a file to write the trained model to, saw none")
    path = Path(config.model.checkpoint)
    about = path.with_suffix(".json")
    if about == path:
        raise ConfigurationError(f"model.checkpoint: expected a file for weights, saw {path}: name it .safetensors")
    if path.exists() and not overwrite:
        raise StoreError(f"{path} already exists: choose another checkpoint, or pass --overwrite")
    if about.exists() and not _is_record(about):
        raise StoreError(
            f"{about}: expected the record of an earlier training or nothing, saw another file: move it away, or "
            "choose another checkpoint"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # before the training, which would be lost
    except OSError as error:
        raise StoreError(f"model.checkpoint: cannot make the folder {path.parent}: {error}") from error
    experiment = Experiment.load(config)
    model, objective = experiment.fresh_model(), experiment.objective
    history = train(model, experiment.bundle.train, objective=objective, training=config.training, progress=progress)
    save_checkpoint(model, path, {"unlearnkit.factory": config.model.source})
    batches = experiment.evaluation_batches(experiment.bundle.test)
    test = loss_and_accuracy(model, batches, objective=objective, progress=progress)
    record = {
        "format": _FORMAT,
        "epochs": [attrs.asdict(epoch) for epoch in history],
        "test": attrs.asdict(test),
        "manifest": experiment.manifest(),
    }
    write_text(about, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def _is_record(path: Path) -> bool:
    try:
        return path.is_file() and bool(json.loads(read_text(path))["format"] == _FORMAT)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, StoreError):
        return False


def _versions() -> dict[str, str]:
    deciding = {"unlearnkit", "torch", "torchvision", "numpy"}  # the bits of a trained model
    return {name: version for name, version in versions().items() if name in deciding}


@final
@attrs.frozen(kw_only=True)
class Recipe:
    """All that a model depends on: equal recipes give equal models on one kind of machine."""

    factory: str
    options: Mapping[str, Any] = attrs.field(factory=dict)
    initial: str
    data: str
    forget: str
    objective: str = CrossEntropy().describe()
    training: Training
    device: str = "cpu"
    versions: Mapping[str, str] = attrs.field(factory=_versions)

    def text(self) -> str:
        return json.dumps(attrs.asdict(self), sort_keys=True, ensure_ascii=False, default=str)

    def file(self, folder: Path) -> Path:
        return folder / f"{hashlib.blake2b(self.text().encode(), digest_size=16).hexdigest()}.safetensors"


def initial_digest(model: nn.Module) -> str:
    """Hash an untrained model: how it is built, and its initial weights and buffers."""
    return hashlib.blake2b(f"{model!r}|{digest(model)}".encode(), digest_size=16).hexdigest()


def read_or_train(
    folder: Path,
    recipe: Recipe,
    model: nn.Module,
    data: Dataset[Any],
    *,
    objective: Objective | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Read the weights of a recipe into an untrained model; the first process to ask trains and writes them."""
    path = recipe.file(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder of retrained models {folder}: {error}") from error
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            found = load_checkpoint(model, path).get(RECIPE)
            if found != recipe.text():
                raise StoreError(
                    f"{path} is not the retrained model that its name stands for: expected the recipe "
                    f"{recipe.text()}, saw {found!r}: delete the file, and it is trained again"
                )
        else:
            train(model, data, objective=objective, training=recipe.training, progress=progress)
            save_checkpoint(model, path, {RECIPE: recipe.text()})
    return model.eval()


def retrained_models(
    experiment: Experiment, seeds: Sequence[int] | None = None, *, progress: Progress = silent
) -> tuple[nn.Module, ...]:
    """Return the model of a configuration retrained without its forget set, once for each seed; cached."""
    seeds = experiment.config.evaluation.retrained_seeds if seeds is None else seeds
    if not seeds:
        return ()
    _check_untrained(experiment)
    data, first = experiment.splits()["retain-train"], Ranks.current().rank % len(seeds)
    # Each rank begins with another seed: it trains some, and reads what the others have trained.
    order, forget = [*seeds[first:], *seeds[:first]], experiment.forgotten.digest()
    found = {seed: _cached(experiment, seed, data, forget=forget, progress=progress) for seed in order}
    return tuple(found[seed] for seed in seeds)


def retrained_for(experiment: Experiment, epochs: int, *, progress: Progress = silent) -> nn.Module:
    """Return the model of a configuration trained without its forget set for other than its epochs; cached."""
    _check_untrained(experiment)
    config, data = experiment.config, experiment.splits()["retain-train"]
    shorter = attrs.evolve(config, training=attrs.evolve(config.training, epochs=epochs))
    experiment, forget = attrs.evolve(experiment, config=shorter), experiment.forgotten.digest()
    return _cached(experiment, config.training.seed, data, forget=forget, progress=progress)


def _check_untrained(experiment: Experiment) -> None:
    """Refuse a factory that returns the weights of the checkpoint: a model that starts from them has not forgotten."""
    model = experiment.config.model
    if not model.checkpoint or not Path(model.checkpoint).exists():
        return
    try:
        original = trainable(experiment.original_model()[0])
    except UnlearnKitError:  # of another architecture, which matters only where it is edited
        return
    fresh = trainable(experiment.fresh_model())
    if all(torch.equal(fresh[name], trained) for name, trained in original.items()):
        raise ConfigurationError(
            f"model.factory: expected a model that was not trained on the data, saw the weights of {model.checkpoint}, "
            f"from which no model can be retrained: let {model.source} return fresh weights"
        )


def cached_original(experiment: Experiment, *, progress: Progress = silent) -> nn.Module:
    """Return the original model of a configuration; cached, as a retrained model whose forget set is empty."""
    seed = experiment.config.training.seed
    return _cached(experiment, seed, experiment.bundle.train, forget="", progress=progress)


def load_or_retrain(experiment: Experiment, *, progress: Progress = silent) -> tuple[nn.Module, ...]:
    """Load or train every retrained model that a configuration names."""
    paths = experiment.config.evaluation.retrained
    named = [experiment.trained_model(path, key="evaluation.retrained")[0] for path in paths]
    return (*named, *retrained_models(experiment, progress=progress))


def retrained_folder(config: Config) -> Path:
    return Path(config.evaluation.retrained_folder or Path(config.output) / ".retrained")


def _cached(experiment: Experiment, seed: int, data: LabelledImages, *, forget: str, progress: Progress) -> nn.Module:
    config, model = experiment.config, experiment.fresh_model(seed=seed)
    recipe = Recipe(
        factory=config.model.source,
        options=config.model.options,
        initial=initial_digest(model),
        data=data_digest(experiment.bundle.train),
        forget=forget,
        objective=experiment.objective.describe(),
        training=attrs.evolve(config.training, seed=seed),
        device=experiment.device.type,
    )
    folder = retrained_folder(config)
    return read_or_train(folder, recipe, model, data, objective=experiment.objective, progress=progress)
