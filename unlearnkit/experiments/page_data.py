"""Take what a page shows beyond the scores: what each model says about samples of each split."""

from typing import Any, final

import attrs
import numpy as np
from torch import nn

from unlearnkit.data import LabelledImages
from unlearnkit.evaluation import LossAndAccuracy, Outputs
from unlearnkit.evaluation.metric import EvaluationInputs
from unlearnkit.evaluation.model_outputs import SPLITS, ModelOutputs
from unlearnkit.evaluation.plot_data import collect_plot_data
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.reporting import RunRecord
from unlearnkit.utils.progress import Progress, silent

MOST = 5000
"""How many samples of each split are looked at: pictures need no more, and the price does not grow with the data."""


@final
@attrs.frozen(kw_only=True, eq=False)
class Gallery:
    """The original and the retrained models of an experiment, looked at once for all its edits."""

    experiment: Experiment
    original: nn.Module
    retrained: tuple[nn.Module, ...] = ()
    progress: Progress = attrs.field(default=silent, repr=False)
    _seen: dict[tuple[int, str], Outputs] = attrs.field(factory=dict, init=False, repr=False)
    _scores: list[dict[str, LossAndAccuracy]] = attrs.field(factory=list, init=False, repr=False)

    def illustrated(self, record: RunRecord, model: nn.Module) -> RunRecord:
        """Add the scores of the retrained models, and what the page of a run draws; call it on every process."""
        inputs = EvaluationInputs(
            model=model,
            splits=self._batches(),
            objective=self.experiment.objective,
            original=self.original,
            retrained=self.retrained,
        )
        seed = self.experiment.config.evaluation.seed
        views = collect_plot_data(ModelOutputs(inputs, self._seen), classes=self._classes(), seed=seed)
        for key in [key for key in self._seen if key[0] == id(model)]:
            del self._seen[key]  # the next edited model may get the same id
        if self.retrained and not self._scores:
            self._scores.extend(self._evaluate(known) for known in self.retrained)
        return attrs.evolve(record, retrained=tuple(self._scores), views=views)

    def _evaluate(self, model: nn.Module) -> dict[str, LossAndAccuracy]:
        return self.experiment.scores(model, self.experiment.evaluated_splits(), progress=self.progress)

    def _batches(self) -> dict[str, Any]:
        parts = self.experiment.splits()
        return {
            name: self.experiment.shared_batches(_some(parts[name], self.experiment.config.evaluation.seed))
            for name in SPLITS
            if name in parts
        }

    def _classes(self) -> tuple[str, ...]:
        data = self.experiment.bundle.train
        return data.class_names.get(data.target, ())


def _some(data: LabelledImages, seed: int) -> LabelledImages:
    if len(data) <= MOST:
        return data
    return data.subset(np.sort(np.random.default_rng(seed).permutation(len(data))[:MOST]))
