"""Models retrained without the forget set, and originals, cached by everything that they depend on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs
from filelock import FileLock
from torch import nn
from torch.utils.data import Dataset

from unlearnkit.data import LabelledImages
from unlearnkit.distributed.collectives import Ranks
from unlearnkit.experiments.config import Config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.provenance import data_digest, versions
from unlearnkit.models.checkpoint import load_checkpoint, save_checkpoint
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.parameters import digest
from unlearnkit.models.training import Training, train
from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.progress import Progress, silent

RECIPE = "unlearnkit.recipe"
"""Key of a cached model's metadata: its recipe as JSON."""


def _versions() -> dict[str, str]:
    deciding = {"unlearnkit", "torch", "torchvision", "numpy"}  # the bits of a trained model
    return {name: version for name, version in versions().items() if name in deciding}


@final
@attrs.frozen(kw_only=True)
class Recipe:
    """Everything that a retrained model depends on: equal recipes give equal models on one kind of machine."""

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

    def key(self) -> str:
        """Hash the recipe: the name of its file."""
        return hashlib.blake2b(self.text().encode(), digest_size=16).hexdigest()


def initial_digest(model: nn.Module) -> str:
    """Hash an untrained model: how it is built, and its initial weights and buffers."""
    return hashlib.blake2b(f"{model!r}|{digest(model)}".encode(), digest_size=16).hexdigest()


@final
@attrs.frozen(kw_only=True)
class ReferenceStore:
    """A folder of retrained models, one safetensors file for each recipe.

    Several processes may share it: the first to ask trains, and the others wait and read. Files are written atomically,
    and may be deleted at any time; the model is then trained again.
    """

    folder: Path = attrs.field(converter=Path)

    def path(self, recipe: Recipe) -> Path:
        return self.folder / f"{recipe.key()}.safetensors"

    def get(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Dataset[Any],
        *,
        objective: Objective | None = None,
        progress: Progress = silent,
    ) -> nn.Module:
        """Read the weights of a recipe into an untrained model, or train the model and write its weights."""
        path = self.path(recipe)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder of retrained models {self.folder}: {error}") from error
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
    """Return the model of a configuration retrained without its forget set, once for each seed; cached.

    The factory, the training options and the device are the configuration's; only the seed differs.
    """
    seeds = experiment.config.evaluation.retrained_seeds if seeds is None else seeds
    if not seeds:
        return ()
    data, first = experiment.splits()["retain-train"], Ranks.current().rank % len(seeds)
    # Each rank begins with another seed: it trains some, and reads what the others have trained.
    found = {
        seed: _cached(experiment, seed, data, forget=experiment.forgotten.digest(), progress=progress)
        for seed in [*seeds[first:], *seeds[:first]]
    }
    return tuple(found[seed] for seed in seeds)


def cached_original(experiment: Experiment, *, progress: Progress = silent) -> nn.Module:
    """Return the original model of a configuration; cached, as a retrained model whose forget set is empty."""
    seed = experiment.config.training.seed
    return _cached(experiment, seed, experiment.bundle.train, forget="", progress=progress)


def load_references(experiment: Experiment, *, progress: Progress = silent) -> tuple[nn.Module, ...]:
    """Load or train every retrained model that a configuration names."""
    paths = experiment.config.evaluation.retrained
    named = [experiment.trained_model(path, key="evaluation.retrained")[0] for path in paths]
    return (*named, *retrained_models(experiment, progress=progress))


def reference_folder(config: Config) -> Path:
    return Path(config.evaluation.retrained_folder or Path(config.output) / ".retrained")


def _cached(experiment: Experiment, seed: int, data: LabelledImages, *, forget: str, progress: Progress) -> nn.Module:
    config, model = experiment.config, experiment.fresh_model(seed=seed)
    recipe = Recipe(
        factory=config.model.factory,
        options=config.model.options,
        initial=initial_digest(model),
        data=data_digest(experiment.bundle.train),
        forget=forget,
        objective=experiment.objective.describe(),
        training=attrs.evolve(config.training, seed=seed),
        device=experiment.device.type,
    )
    return ReferenceStore(folder=reference_folder(config)).get(
        recipe, model, data, objective=experiment.objective, progress=progress
    )
