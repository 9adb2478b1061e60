"""Tuning from a configuration: the right edit of one method, its checkpoint, and everything that was tried."""

from pathlib import Path
from typing import final

import attrs

from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.experiments.config import Config, MethodConfig
from unlearnkit.experiments.experiment import chosen_method
from unlearnkit.experiments.job import result_folder
from unlearnkit.experiments.run import edits
from unlearnkit.experiments.search import checked_unlearner
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.reporting import RunRecord
from unlearnkit.utils.progress import Progress, silent


@final
@attrs.frozen(kw_only=True, eq=False)
class Tuned:
    tuning: Tuning
    record: RunRecord
    folder: Path


def tune(
    config: Config,
    *,
    plugins: PluginManager | None = None,
    overwrite: bool = False,
    again: bool = False,
    progress: Progress = silent,
) -> Tuned:
    """Search for the right edit with one method, make it on a copy of the original model, and write both.

    It is `run` with this method alone, ``tuned = true`` and ``-tuned`` after its label. Validation samples are split
    from the forget set and the retain set of the training data (the original was trained on them); importances are
    measured on the rest. The test set is used once, after the choice; only the target ``"unseen"`` takes a part of it
    away first. Without a candidate within the budget no model is written, and the record says so. With
    torch.distributed, the ranks share importances, candidates and evaluation, and rank 0 writes. ``overwrite`` and
    ``again`` are those of `run`.
    """
    plugins = plugins or default_manager()
    method = method_to_tune(config, plugins)
    method = attrs.evolve(method, label=f"{method.label}-tuned")
    config = attrs.evolve(config, method=(method,))
    ((record, found),) = edits(config, plugins=plugins, overwrite=overwrite, again=again, progress=progress)
    tuning = found or Tuning.from_dict(record.tuning or {})
    return Tuned(tuning=tuning, record=record, folder=result_folder(config, method.label))


def method_to_tune(config: Config, plugins: PluginManager) -> MethodConfig:
    """Return the method that ``tuning.method`` names, checked."""
    method = attrs.evolve(chosen_method(config, config.tuning.method, key="tuning.method"), tuned=True)
    checked_unlearner(method, plugins, config.tuning)
    return method
