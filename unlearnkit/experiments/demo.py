"""The demonstration: real digits, a small network, three methods, and a retrained model to compare with."""

import copy
import time
from collections.abc import Mapping
from typing import Any, final

import attrs
import torch
from rich.table import Table
from torch import nn

from unlearnkit.data import ByClass, LabelledImages, digits, forget_split, loader
from unlearnkit.distributed.collectives import resolve_device
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.importance import Importance, Role
from unlearnkit.models import CrossEntropy, Training, small_cnn, train
from unlearnkit.pipeline import Pipeline
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.reporting.tables import compact
from unlearnkit.unlearning import Report
from unlearnkit.utils.options import options_of
from unlearnkit.utils.progress import Progress, silent
from unlearnkit.utils.structuring import call
from unlearnkit.utils.text import percent

# Estimators by their name in the table; method, estimator and options of each edit.
ESTIMATORS: Mapping[str, str] = {"per sample": "diagonal-fisher", "batched": "batched-diagonal-fisher"}
TRIALS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("prune", "per sample", {"tau": 0.0}),
    ("binary-mask", "per sample", {"lam": 1.0}),
    ("binary-mask", "per sample", {"lam": 5.0}),
    ("ssd", "per sample", {"alpha": 10.0}),
    ("ssd", "per sample", {"alpha": 5.0}),
    ("ssd", "batched", {"alpha": 10.0}),
)


@final
@attrs.frozen(kw_only=True)
class Row:
    name: str
    estimator: str = ""
    report: Report | None = None
    retain: float
    forget: float
    seconds: float

    @property
    def edited(self) -> str:
        return percent(self.report.fraction) if self.report else "–"


@final
@attrs.frozen(kw_only=True)
class DemoResult:
    digit: int
    original: Row
    retrained: Row
    edits: tuple[Row, ...]

    def table(self) -> Table:
        title = f"forgetting the digit {self.digit}: accuracy on test images (Δ: gap to retraining)"
        table = compact(title, "model", "importance", "edited", "retain", "Δ", "forget", "Δ", "seconds", left=2)
        for row in (self.original, self.retrained, *self.edits):
            gaps = [f"{row.retain - self.retrained.retain:+.3f}", f"{row.forget - self.retrained.forget:+.3f}"]
            if row is self.retrained:
                gaps = ["–", "–"]
            scores = (f"{row.retain:.3f}", gaps[0], f"{row.forget:.3f}", gaps[1])
            table.add_row(row.name, row.estimator, row.edited, *scores, f"{row.seconds:.2f}")
        return table

    def lesson(self) -> str:
        widest = max(self.edits, key=lambda row: row.report.fraction if row.report else 0.0)
        first = (
            f"Editing every weight that the forgotten digit touches ({widest.name}) takes the accuracy on the other "
            f"digits from {self.original.retain:.3f} to {widest.retain:.3f}, where retraining keeps "
            f"{self.retrained.retain:.3f}."
        )
        idle = [row for row in self.edits if row.report and row.report.changed == 0]
        if not idle:
            return f"{first} Every fixed α did edit something here; on the next model it may do nothing at all."
        same = [row for row in self.edits if row.name == idle[0].name and row is not idle[0]]
        but = f", and with {same[0].estimator} importances the same option edits {same[0].edited}" if same else ""
        return f"{first} A fixed α can do nothing at all: {idle[0].name} edited no weight here{but}."


def demo(
    *,
    forget: int = 3,
    epochs: int = 20,
    seed: int = 0,
    device: str = "auto",
    plugins: PluginManager | None = None,
    progress: Progress = silent,
) -> DemoResult:
    """Train on the digits, forget one of them, 0 to 9, in several ways, retrain without it, and measure."""
    plugins, place = plugins or default_manager(), resolve_device(device)
    bundle = digits(seed=seed)
    split = forget_split(bundle, ByClass(classes=forget))
    training = Training(epochs=epochs, seed=seed, learning_rate=3e-3)

    def measured(model: nn.Module, **known: Any) -> Row:
        retain, forgotten = (
            loss_and_accuracy(model, loader(bundle.test.subset(rows), batch_size=256)).accuracy or 0.0
            for rows in (split.test.retain, split.test.forget)
        )
        return Row(retain=retain, forget=forgotten, **known)

    def trained(name: str, data: LabelledImages) -> tuple[nn.Module, Row]:
        model = small_cnn(seed=seed).to(place)
        _warm_up(place)
        start = time.perf_counter()
        train(model, data, training=training, progress=progress)
        return model, measured(model, name=name, seconds=time.perf_counter() - start)

    original, original_row = trained("original", bundle.train)
    _, retrained_row = trained("retrained", bundle.train.subset(split.train.retain))
    parts = {Role.FORGET: bundle.train.subset(split.train.forget), Role.FULL: bundle.train}
    known: dict[str, tuple[Importance, Importance, float]] = {}  # forget, full, seconds
    for label, name in ESTIMATORS.items():
        start, estimator, objective = time.perf_counter(), plugins.estimator(name)(), CrossEntropy()
        one, other = (
            estimator.estimate(original, loader(data, batch_size=64), objective=objective, role=role, progress=progress)
            for role, data in parts.items()
        )
        known[label] = one, other, time.perf_counter() - start
    edits = []
    for method, label, options in TRIALS:
        model, (one, other, seconds) = copy.deepcopy(original), known[label]
        unlearner = call(plugins.unlearner(method), options, where=method)
        report = Pipeline(unlearner=unlearner, plugins=plugins).run(model, forget=one, reference=other)
        symbols = {option.name: option.symbol or option.name for option in options_of(unlearner)}
        name = f"{method} {', '.join(f'{symbols[key]}={value:g}' for key, value in options.items())}"
        seconds += sum(report.seconds.values())
        edits.append(measured(model, name=name, estimator=label, report=report, seconds=seconds))
    return DemoResult(digit=forget, original=original_row, retrained=retrained_row, edits=tuple(edits))


def _warm_up(device: torch.device) -> None:
    # The first step of the first optimiser imports torch's compiler, which takes seconds and is not training.
    weight = nn.Parameter(torch.zeros(1, device=device))
    weight.grad = torch.zeros_like(weight)
    torch.optim.Adam([weight]).step()
