"""The objects that a configuration describes: device, data, forget set, models, methods."""

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs
import torch
from torch import nn
from torch.utils.data import DataLoader

from unlearnkit.data import DataBundle, ForgetSplit, LabelledImages, Split, forget_split, loader
from unlearnkit.distributed import Shared
from unlearnkit.distributed.collectives import resolve_device
from unlearnkit.evaluation import LossAndAccuracy, Metric, loss_and_accuracy
from unlearnkit.evaluation.model_outputs import SPLITS
from unlearnkit.experiments.config import (
    Config,
    EvaluationConfig,
    ImportanceConfig,
    MethodConfig,
    StepConfig,
)
from unlearnkit.experiments.factories import data_factory, model_factory, normalisation, normalisation_remark
from unlearnkit.experiments.provenance import data_digest, manifest
from unlearnkit.importance import ImportanceEstimator, Role
from unlearnkit.models import Autocast, CrossEntropy, Objective, load_checkpoint
from unlearnkit.pipeline import Pipeline
from unlearnkit.plugins.manager import PluginManager
from unlearnkit.unlearning import Unlearner
from unlearnkit.utils.errors import ConfigurationError, StoreError, UnknownMethodError, UnlearnKitWarning, nearest
from unlearnkit.utils.options import options_of
from unlearnkit.utils.progress import Progress, silent
from unlearnkit.utils.rng import private_rng
from unlearnkit.utils.structuring import call, import_path

_SPLITS = ("full-train", *SPLITS)


@final
@attrs.frozen(kw_only=True, eq=False)
class Experiment:
    """A configuration, with its data loaded and checked."""

    config: Config
    device: torch.device
    objective: Objective
    bundle: DataBundle
    split: ForgetSplit | None

    @classmethod
    def load(cls, config: Config) -> "Experiment":
        device, chosen = resolve_device(config.device), config.objective
        objective = _made("objective", chosen.factory, chosen.options, Objective, "an unlearnkit.Objective")
        factory, options = data_factory(config)
        spec, differs = config.forget.spec(), normalisation_remark(config)
        if differs:
            warnings.warn(differs, UnlearnKitWarning, stacklevel=2)
        bundle = _made("data", factory, options, DataBundle, "an unlearnkit.data.DataBundle")
        if config.forget.corrupted is not None:
            bundle = config.forget.corrupted.apply(bundle)
        if objective == CrossEntropy() and len(bundle.train.kinds) > 1:
            objective = CrossEntropy(targets=len(bundle.train.kinds))  # of several labels, the target is the last one
        split = forget_split(bundle, spec) if spec else None
        return cls(config=config, device=device, objective=objective, bundle=bundle, split=split)

    def fresh_model(self, *, seed: int | None = None, pretrained: bool = True) -> nn.Module:
        """Make an untrained model on the device; its initial weights depend on the seed only.

        Without ``pretrained``, a factory with that option is told so: a checkpoint will replace the weights.
        """
        with private_rng(seed=self.config.training.seed if seed is None else seed):
            return self.make_model(pretrained=pretrained)

    def make_model(self, *, pretrained: bool = True) -> nn.Module:
        """Make a model as `fresh_model` does, with the global generators as they are."""
        path, options = model_factory(self.config.model)
        takes = inspect.signature(import_path(path)).parameters
        if "num_classes" in takes:
            options.setdefault("num_classes", self.bundle.num_classes)
        if "pretrained" in takes and not pretrained:
            options["pretrained"] = False
        model: nn.Module = _made("model", path, options, nn.Module, "a torch.nn.Module")
        return model.to(self.device)

    def original_model(self) -> tuple[nn.Module, dict[str, str]]:
        if not self.config.model.checkpoint:
            raise ConfigurationError(
                "model.checkpoint: expected the weights of a trained model, saw none: name a file; "
                "`unlearnkit train CONFIG.toml` makes it"
            )
        return self.trained_model(self.config.model.checkpoint)

    def trained_model(self, path: str, *, key: str = "model.checkpoint") -> tuple[nn.Module, dict[str, str]]:
        if not Path(path).exists():
            raise StoreError(f"{key}: {path} does not exist: make it with `unlearnkit train CONFIG.toml`")
        model = self.fresh_model(pretrained=False)
        metadata = load_checkpoint(model, path, allow_pickle=self.config.model.allow_pickle, undo=False)
        return model.eval(), metadata

    def splits(self) -> dict[str, LabelledImages]:
        """Return the full training set, and its parts and those of the test set that are not empty."""
        train, test, split = self.bundle.train, self.bundle.test, self._split
        rows = {
            "retain-train": (train, split.train.retain),
            "forget-train": (train, split.train.forget),
            "retain-test": (test, split.test.retain),
            "forget-test": (test, split.test.forget),
        }
        return {"full-train": train, **{name: data.subset(some) for name, (data, some) in rows.items() if len(some)}}

    @property
    def importance_objective(self) -> Objective:
        """The objective of importances: in bfloat16 where the configuration says so."""
        lower = self.config.importance.precision == "bfloat16"
        return Autocast(objective=self.objective) if lower else self.objective

    @property
    def forgotten(self) -> Split:
        """The split of the training data into retain and forget set."""
        return self._split.train

    @property
    def _split(self) -> ForgetSplit:
        if self.split is None:
            raise ConfigurationError(
                "forget: expected what to forget, saw nothing: set one of classes, fine, "
                "indices, indices_file, corrupted"
            )
        return self.split

    def importance_batches(self, data: LabelledImages) -> DataLoader[Any]:
        chosen, seed, workers = self.config.importance, self.config.seed, self.config.data.workers
        return loader(
            data, batch_size=chosen.batch_size, shuffle=chosen.shuffle, seed=seed, workers=workers, device=self.device
        )

    def evaluation_batches(self, data: LabelledImages) -> DataLoader[Any]:
        size, workers = self.config.evaluation.batch_size, self.config.data.workers
        return loader(data, batch_size=size, workers=workers, device=self.device)

    def shared_batches(self, data: LabelledImages) -> Shared:
        """Return a data loader for an evaluation whose batches the ranks share."""
        return Shared(items=self.evaluation_batches(data))

    def scores(
        self, model: nn.Module, parts: Mapping[str, LabelledImages], *, progress: Progress = silent
    ) -> dict[str, LossAndAccuracy]:
        """Measure loss and accuracy on parts of the data; ranks share the batches, so call it on all of them."""
        return {
            name: loss_and_accuracy(model, self.shared_batches(data), objective=self.objective, progress=progress)
            for name, data in parts.items()
        }

    def manifest(self) -> dict[str, Any]:
        return {
            **manifest(config=attrs.asdict(self.config), data=self.bundle.train, device=self.device),
            "normalisation": normalisation(self.config),
            "test_data_digest": data_digest(self.bundle.test),
        }

    def estimator(self, plugins: PluginManager) -> ImportanceEstimator:
        return make_estimator(self.config.importance, plugins)

    def pipeline(self, method: MethodConfig, plugins: PluginManager) -> Pipeline:
        return Pipeline(
            unlearner=make_unlearner(method, plugins),
            estimator=self.estimator(plugins),
            normalise=method.normalise,
            reference_role=Role(self.config.importance.reference),
            max_fraction=method.max_fraction,
            only=method.only,
            exclude=method.exclude,
            plugins=plugins,
        )


def make_estimator(importance: ImportanceConfig, plugins: PluginManager) -> ImportanceEstimator:
    name = importance.estimator
    return call(plugins.estimator(name), importance.options, where=f"importance.options ({name})")


def make_unlearner(method: MethodConfig, plugins: PluginManager) -> Unlearner:
    if method.grid:
        raise ConfigurationError(f"method {method.label!r}: expected no grid, which is for `unlearnkit compare` alone")
    made, where = dict(method.options), f"method.{method.label}"
    if method.steps:
        made["steps"] = tuple(_step(s, plugins, f"{where}.steps.{place}") for place, s in enumerate(method.steps))
    return call(plugins.unlearner(method.name), made, where=f"{where}.options")


def _step(step: StepConfig, plugins: PluginManager, where: str) -> Unlearner:
    try:
        return call(plugins.unlearner(step.name), step.options, where="options")
    except (ConfigurationError, UnknownMethodError) as error:
        raise type(error)(f"{where} ({step.name!r}): {error}") from error


def check_split(name: str) -> None:
    """Raise an error for a split to evaluate that does not exist."""
    if name not in _SPLITS:
        raise ConfigurationError(f"evaluation.splits: there is no {name!r}{nearest(name, _SPLITS)}")


def chosen_method(config: Config, wanted: str, *, key: str) -> MethodConfig:
    """Find the one method that a command works with."""
    known = {method.label: method for method in config.method}
    if not wanted and len(known) == 1:
        return next(iter(known.values()))
    if wanted not in known:
        hint = nearest(wanted, known) if wanted else f": the configuration has {[*known]}"
        raise ConfigurationError(f"{key}: expected the label of a method, saw {wanted!r}{hint}")
    return known[wanted]


def make_metrics(config: Config, plugins: PluginManager) -> dict[str, Metric]:
    evaluation = config.evaluation
    known = (*evaluation.metrics, *config.comparison.metrics)  # both take evaluation.options
    for name in evaluation.options:
        if name not in known:
            hint = nearest(name, known)
            raise ConfigurationError(f"evaluation.options: expected metrics of evaluation.metrics, saw {name!r}{hint}")
    return {name: make_metric(name, evaluation, plugins) for name in evaluation.metrics}


def make_metric(name: str, config: EvaluationConfig, plugins: PluginManager) -> Metric:
    cls, options = plugins.metric(name), dict(config.options.get(name, {}))
    if any(known.name == "seed" for known in options_of(cls)):
        options.setdefault("seed", config.seed)
    made: Metric = call(cls, options, where=f"evaluation.options.{name}")
    return made


def _made(section: str, factory: str, options: Mapping[str, Any], kind: type, what: str) -> Any:
    """Call the factory of a section of the configuration, and check what it returns."""
    try:
        made = call(import_path(factory), options, where=f"{section}.options")
    except Exception as error:
        error.add_note(f"This was raised by {section}.factory {factory!r}.")
        raise
    if not isinstance(made, kind):
        raise ConfigurationError(
            f"{section}.factory {factory!r}: expected it to return {what}, saw {type(made).__name__}"
        )
    return made
