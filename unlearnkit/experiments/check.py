"""Looks for mistakes in a configuration without doing its work: no data is read, no model is made."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from unlearnkit.distributed.collectives import resolve_device
from unlearnkit.experiments.comparison.trial import variants
from unlearnkit.experiments.config import Config
from unlearnkit.experiments.experiment import (
    check_split,
    chosen_method,
    make_estimator,
    make_metric,
    make_metrics,
)
from unlearnkit.experiments.factories import data_factory, model_factory, normalisation_remark
from unlearnkit.experiments.recommend import method_called
from unlearnkit.experiments.search import checked_unlearner
from unlearnkit.experiments.tune import method_to_tune
from unlearnkit.models import input_transform
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.utils.errors import ConfigurationError, UnlearnKitError, nearest
from unlearnkit.utils.structuring import import_path


def check_config(config: Config, *, plugins: PluginManager | None = None) -> tuple[list[str], list[str]]:
    """Return the problems of a configuration, and remarks about what is not there yet."""
    manager = plugins or default_manager()
    problems = [*dict.fromkeys(_problems(config, manager))]
    return problems, [*_remarks(config), *([] if problems else filter(None, [normalisation_remark(config)]))]


def _problems(config: Config, plugins: PluginManager) -> Iterator[str]:
    yield from _failure("device", lambda: resolve_device(config.device))
    yield from _failure("forget", config.forget.spec)
    for method in config.method:
        for _, variant in variants(method):
            yield from _failure(f"method.{method.label}", partial(checked_unlearner, variant, plugins, config.tuning))
    if config.tuning.method:
        yield from _failure("tuning.method", lambda: method_to_tune(config, plugins))
    if config.deletion.method:
        yield from _failure(
            "deletion.method", lambda: chosen_method(config, config.deletion.method, key="deletion.method")
        )
    for name in config.recommend.methods:
        yield from _failure("recommend.methods", partial(method_called, name, config, plugins))
    for name in config.evaluation.splits:
        yield from _failure("evaluation.splits", partial(check_split, name))
    yield from _failure("importance.estimator", lambda: make_estimator(config.importance, plugins))
    yield from _failure("evaluation.metrics", lambda: make_metrics(config, plugins))
    for name in config.comparison.metrics:
        yield from _failure("comparison.metrics", partial(make_metric, name, config.evaluation, plugins))
    sections = {"data": partial(data_factory, config), "model": partial(model_factory, config.model)}
    for section, factory in sections.items():
        try:
            yield from _factory(section, *factory())
        except ConfigurationError as error:
            yield str(error)
    if config.model.name:
        yield from _failure("model", partial(input_transform, config.model.name))
    yield from _factory("objective", config.objective.factory, config.objective.options)


def _failure(where: str, attempt: Callable[[], object]) -> Iterator[str]:
    try:
        attempt()
    except UnlearnKitError as error:
        text = str(error)
        yield text if text.startswith(where.split(".", maxsplit=1)[0]) else f"{where}: {text}"


def _factory(section: str, path: str, options: Mapping[str, Any]) -> Iterator[str]:
    try:
        takes = inspect.signature(import_path(path)).parameters
    except UnlearnKitError as error:
        yield f"{section}.factory: {error}"
        return
    except ValueError:  # some builtins have no signature
        return
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        unknown = (name for name in options if name not in takes)
        yield from (f"{section}.options: unknown option {name!r}{nearest(name, takes)}" for name in unknown)
    missing = [
        name
        for name, p in takes.items()
        if p.default is p.empty and p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL} and name not in options
    ]
    yield from (f"{section}.options: {name!r} is required" for name in missing if name != "num_classes")


def _remarks(config: Config) -> Iterator[str]:
    checkpoint = config.model.checkpoint
    if not checkpoint:
        yield "model.checkpoint is not set: every command but `compare` needs it"
    elif not Path(checkpoint).exists():
        yield f"{checkpoint} does not exist yet: `unlearnkit train` makes it"
    if not config.forget.given and not config.comparison.forget:
        yield "forget is empty: `run`, `tune`, `recommend` and `compare` need it"
    if not config.method:
        yield "there is no [[method]]: `run`, `tune` and `compare` need one"
    for file in config.evaluation.retrained:
        if not Path(file).exists():
            yield f"evaluation.retrained: {file} does not exist"
    root = config.data.options.get("root")
    if isinstance(root, str) and not Path(root).exists():
        yield f"data.options.root: {root} does not exist"
    for method in config.method:
        result = Path(config.output) / method.label
        if result.exists():
            yield f"{result} exists: `unlearnkit run` asks for --overwrite"
