"""Take the views of an edited model beside the original and the retrained ones."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from torch import nn

from unlearnkit.evaluation.arrays import Floats
from unlearnkit.evaluation.features import label_losses
from unlearnkit.evaluation.metrics.membership import population_scores, unseen_halves
from unlearnkit.evaluation.metrics.model_outputs import ModelOutputs
from unlearnkit.evaluation.metrics.relative import RelativeMembership
from unlearnkit.evaluation.outputs import InapplicableError, Outputs
from unlearnkit.evaluation.plot_data import Destination, Histogram, PlotData, RocCurve

Scores = Callable[[ModelOutputs, nn.Module], tuple[Floats, Floats]]


def portrait(sheet: ModelOutputs, *, classes: Sequence[str] = (), seed: int = 0) -> PlotData:
    """Look at what an edited model says about forgotten and about unseen samples."""
    models = _models(sheet)
    reasons = {} if "retrained" in models else {"retrained": "no retrained model at hand"}
    histograms: list[Histogram] = []
    destinations: list[Destination] = []
    curves: list[RocCurve] = []
    for what, take in (("destinations", _destinations), ("histograms", _histograms)):
        try:
            found = list(take(sheet, models, seed))
        except InapplicableError as reason:
            reasons[what] = str(reason)
        else:
            histograms += [view for view in found if isinstance(view, Histogram)]
            destinations += [view for view in found if isinstance(view, Destination)]
    for attack, scores in _attacks(seed).items():
        for name, group in models.items():
            try:
                curves += [RocCurve.of(*scores(sheet, model), attack=attack, model=name) for model in group]
            except InapplicableError as reason:
                reasons[f"{attack} attack, {name}"] = str(reason)
    count = len(destinations[0].counts) if destinations else 0
    names = [classes[i] if i < len(classes) else str(i) for i in range(count)]
    return PlotData(
        classes=tuple(names),
        histograms=tuple(histograms),
        curves=tuple(curves),
        destinations=tuple(destinations),
        samples={s: len(sheet.of(models["unlearned"][0], s).labels) for s in sheet.splits} if destinations else {},
        reasons=reasons,
    )


def _models(sheet: ModelOutputs) -> dict[str, list[nn.Module]]:
    names = {"original ": "original", "": "unlearned"}
    found = {names[prefix]: [model] for prefix, model in sheet.named.items()}
    ordered = {name: found[name] for name in names.values() if name in found}
    try:
        return {**ordered, "retrained": list(sheet.retrained())}
    except InapplicableError:
        return ordered


def _attacks(seed: int) -> dict[str, Scores]:
    population = {kind: partial(population_scores, kind=kind, seed=seed) for kind in ("loss", "entropy")}
    return {**population, "RMIA": RelativeMembership(seed=seed).scores}


def _destinations(sheet: ModelOutputs, models: dict[str, list[nn.Module]], seed: int) -> Iterator[Destination]:
    del seed
    forgotten = sheet.of(models["unlearned"][0], "forget-train")
    classes = forgotten.logits.shape[1]
    yield Destination(model="label", counts=_counts(forgotten.labels, classes))
    for name, group in models.items():
        predicted = np.concatenate([sheet.of(m, "forget-train").logits.argmax(axis=1) for m in group])
        yield Destination(model=name, counts=_counts(predicted, classes))


def _counts(labels: np.ndarray, classes: int) -> tuple[int, ...]:
    return tuple(map(int, np.bincount(labels, minlength=classes)))


def _histograms(sheet: ModelOutputs, models: dict[str, list[nn.Module]], seed: int) -> Iterator[Histogram]:
    for name, group in models.items():
        forgotten = [_confidences(sheet.of(model, "forget-train")) for model in group]
        unseen = [_confidences(unseen_halves(sheet, model, seed)[1]) for model in group]
        yield Histogram.of(np.concatenate(forgotten), model=name, samples="forgotten")
        yield Histogram.of(np.concatenate(unseen), model=name, samples="unseen")


def _confidences(outputs: Outputs) -> Floats:
    found: Floats = np.exp(-label_losses(outputs.logits, outputs.labels))
    return found
