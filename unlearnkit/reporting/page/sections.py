"""The sections of a page; each says in words why it has nothing to show."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import Any

import attrs
import numpy as np

from unlearnkit.evaluation.metrics.retrain_gap import ENOUGH
from unlearnkit.evaluation.plot_data import BINS, Histogram, PlotData, RocCurve, shares
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.importance.provenance import error_text
from unlearnkit.reporting import plots
from unlearnkit.reporting.page.parts import Picture, Section, Table
from unlearnkit.reporting.record import RunRecord
from unlearnkit.reporting.verdict import near
from unlearnkit.utils.text import number, percent

_MODELS = ("unlearned", "original", "retrained")
_SHOWN = 12  # values of a list
_NOT_TAKEN = "This was not measured: evaluation.page was false, no edit was made, or an older version wrote the record."


def forgotten(record: RunRecord) -> Section:
    """The forget set: scenario, size, digest and labels."""
    facts, config = record.forget, record.manifest.get("config", {}).get("forget", {})
    rows = [(key, _listed(value)) for key, value in config.items() if value]
    if facts:
        share = f"{facts['samples']} of {facts['of']} training samples ({percent(facts['fraction'])})"
        rows = [("scenario", str(facts["scenario"])), ("samples", share), *rows]
        rows.append(("digest of the forget set", str(facts["digest"])))
    views = record.views or PlotData()
    for labels in (d for d in views.destinations if d.model == "label"):
        named = [f"{name} ({n})" for name, n in zip(views.classes, labels.counts, strict=True) if n]
        rows.append(("labels of the forgotten samples", _listed(named)))
    if not rows:
        return Section(words=("The record does not say what was forgotten.",))
    return Section(tables=(Table(caption="What was forgotten", header=("what", "value"), rows=tuple(rows)),))


def scores(record: RunRecord) -> Section:
    """Accuracy before and after the edit, and of retrained models."""
    if not record.after:
        return Section(words=("Nothing was measured.",))
    rows = []
    for split, after in record.after.items():
        before, row = record.before.get(split), [f"{split} ({after.samples})"]
        for measured in (attrgetter("accuracy"), attrgetter("loss")):
            known = [number(measured(each[split])) for each in record.retrained if split in each]
            row += [number(before and measured(before)), number(measured(after)), ", ".join(known) or "–"]
        rows.append(tuple(row))
    header = ("split (samples)", "original", "unlearned", "retrained", "loss: original", "unlearned", "retrained")
    table = Table(caption="Accuracy, and mean loss in nats", header=header, rows=tuple(rows))
    words = () if record.retrained else ("No retrained model at hand: its bars are missing. Retraining is the goal.",)
    if all(score.accuracy is None for score in record.after.values()):
        return Section(words=(*words, "No classification: there is only a loss."), tables=(table,))
    said = "; ".join(
        f"{row[0]}: original {row[1]}, unlearned {row[2]}" + (f", retrained {row[3]}" if record.retrained else "")
        for row in rows
    )
    picture = Picture(
        name="accuracy-bars",
        title="Accuracy per split",
        caption="Retain accuracy should stay, and forget accuracy should come close to that of retrained models, not "
        "below it. The line at the end of a bar is one standard deviation of the retrained models.",
        alternative=f"Bars of accuracy. {said}.",
        draw=partial(plots.accuracy_bars, before=record.before, after=record.after, retrained=record.retrained),
        height=0.9 + 0.7 * len(rows),
        table=table,
    )
    return Section(words=words, pictures=(picture,))


def gap(record: RunRecord) -> Section:
    """Each measure against the retrained models."""
    measures = record.judgement().measures
    if not measures:
        why = "Nothing was measured on both sides" if record.retrained else "No retrained model at hand"
        text = f"{why}: name checkpoints in evaluation.retrained, or seeds in evaluation.retrained_seeds."
        return Section(words=(text,))
    rows = [
        (
            measure.name,
            number(measure.gap.value),
            number(measure.gap.mean),
            number(measure.gap.sd),
            f"{measure.gap.delta:+.3f}",
            f"{measure.gap.sds:+.1f} sd" if measure.gap.sds is not None else measure.gap.reason,
        )
        for measure in measures
    ]
    models = len(record.retrained)
    text = (
        "A gap counts in both directions: forget accuracy below that of retrained models is a gap too. sd is the "
        f"standard deviation of {models} retrained models; it covers their training seeds only."
    )
    if models >= ENOUGH:
        text += (
            f" The verdict's limit is {near(models):.1f} sd: one more retrained model would lie within it 95 times "
            "in 100. It is wide when there are few models. Where all have the same value, an accuracy counts as equal "
            "within one sample, and an AUC within 1.96 standard errors of guessing."
        )
    header = ("measure", "unlearned", "retrained: mean", "sd", "difference", "gap")
    tables = [Table(caption="The gap to retraining", header=header, rows=tuple(rows))]
    if record.features:
        held = tuple(
            (f.name, number(f.value), number(f.original), ", ".join(map(number, f.retrained)) or "–", number(f.error))
            for f in record.features
        )
        columns = ("measure", "unlearned", "original", "retrained", "sampling error")
        tables.append(Table(caption="What the features hold", header=columns, rows=held))
    return Section(words=(text,), tables=tuple(tables))


def search(record: RunRecord) -> Section:
    """Every edit that the search tried, and every method that `recommend` tried."""
    found = record.recommendation
    if found is None:
        return _edits(record)
    rows = tuple((*a.values.values(), "chosen" if a is found.best else a.problem) for a in found.attempts)
    aims = ", ".join(f"{name} {number(value)}" for name, value in found.target.items())
    words = (found.sentence(), f"Aims: {aims}: {found.source}.")
    tried = Table(caption="The best edit of each method", header=(*found.attempts[0].values, ""), rows=rows)
    edits = _edits(record) if record.tuning is not None else Section()
    return attrs.evolve(edits, words=(*words, *edits.words), tables=(tried, *edits.tables))


def _edits(record: RunRecord) -> Section:
    if record.tuning is None:
        return Section(words=("The options were set; unlearnkit tune searches for them on validation data.",))
    tuning = Tuning.from_dict(record.tuning)
    frontier = {id(c) for c in tuning.frontier}
    rows = tuple(
        (
            ", ".join(f"{name} = {v if isinstance(v, int | str) else number(v)}" for name, v in c.options.items()),
            percent(c.share),
            "–" if c.setting is None else "again" if c.setting.reestimate else "kept",
            number(c.retain),
            number(c.forget),
            "chosen" if c is tuning.chosen else "frontier" if id(c) in frontier else c.problem or "",
        )
        for c in tuning.candidates
    )
    header = ("options", "selected", "BatchNorm", "retain", "forget", "")
    table = Table(caption="Every edit that was tried", header=header, rows=rows)
    picture = Picture(
        name="tuning-frontier",
        title="What was tried, and what was chosen",
        caption="Each point is an edit, scored on validation data; further right is better. The dashed line is the "
        "target forget accuracy. Left of the dotted line, more retain accuracy is lost than the budget allows. If the "
        "target is missed, a dash-dotted line shows the budget that reaches it.",
        alternative=f"Retain against forget accuracy of {len(rows)} edits. {tuning.sentence()}",
        draw=partial(plots.tuning_frontier, tuning=tuning),
        height=4.2,
        table=table,
    )
    return Section(words=(tuning.sentence(),), pictures=(picture,))


def layers(record: RunRecord) -> Section:
    """The share of changed weights per layer."""
    report = record.report
    if not report.size:
        return Section(words=("No edit was made.",))
    buffers = f" Buffers that changed: {_listed(report.buffers_changed)}." if report.buffers_changed else ""
    words = (f"{report.sentence()}{buffers}",)
    if not report.changed:
        return Section(words=words)
    shown = plots.layers_of(report)
    rows = tuple((t.name, f"{t.size:,}", f"{t.changed:,}", percent(t.fraction)) for t in report.tensors)
    table = Table(caption="Every tensor", header=("tensor", "weights", "changed", "share"), rows=rows)
    most = max(shown, key=lambda layer: layer.fraction)
    touched = sum(1 for layer in shown if layer.changed)
    cut = "" if len(shown) == len(rows) else " Tensors of one module stand together; the table has each."
    picture = Picture(
        name="edited-layers",
        title="Share of changed weights per layer",
        caption=f"From the input above to the output below.{cut}",
        alternative=f"Bars of the changed share. {touched} of {len(shown)} layers were edited, {most.name} most: "
        f"{percent(most.fraction)} of {most.size:,} weights.",
        draw=partial(plots.edited_layers, report=report, layers=shown),
        height=0.9 + 0.24 * len(shown),
        table=table,
    )
    return Section(words=words, pictures=(picture,))


def confidences(record: RunRecord) -> Section:
    """Confidence in the label on forgotten and on unseen samples."""
    views = record.views
    if views is None or not views.histograms:
        return Section(words=(_why(views, "histograms"),))
    models = dict.fromkeys(h.model for h in views.histograms)
    pictures = tuple(_histogram([h for h in views.histograms if h.model == model], model) for model in models)
    intro = (
        "A model that forgot treats forgotten samples as if it had never seen them: the two lines of the unlearned "
        "model should look like those of a retrained model."
    )
    return Section(words=(intro, *_missing(views)), pictures=pictures)


def attacks(record: RunRecord) -> Section:
    """ROC curves of the attacks."""
    views = record.views
    if views is None:
        return Section(words=(_NOT_TAKEN,))
    names = [*dict.fromkeys(curve.attack for curve in views.curves if curve.model == "unlearned")]
    reasons = [f"{what}: {why}." for what, why in views.reasons.items() if " attack, " in what]
    intro = (
        "Each attack tries to tell forgotten from unseen samples. The goal is an area under the curve (AUC) near that "
        "of the retrained models. Above it, the attack still finds the forgotten samples; below it, they are treated "
        "worse than unseen samples. A low AUC is no proof: a stronger attack may find more."
    )
    words = (*([intro] if names else ()), *reasons) or ("There is no attack to show.",)
    return Section(words=words, pictures=tuple(_roc(views.curves, a) for a in names))


def where(record: RunRecord) -> Section:
    """Predictions for forgotten samples."""
    views = record.views
    if views is None or not views.destinations:
        return Section(words=(_why(views, "destinations"),))
    models = [d for d in views.destinations if d.model != "label"]
    names, by_model = plots.destination_shares(models, views.classes)
    header = ("class", *(f"{d.model} ({sum(d.counts)})" for d in views.destinations))
    counts = [d.counts for d in views.destinations]
    said = "; ".join(f"{model}: mostly {names[int(np.argmax(values))]}" for model, values in by_model.items())
    picture = Picture(
        name="destinations",
        title="Predictions for forgotten samples",
        caption="Training samples of the forget set. Retrained models are summed.",
        alternative=f"Bars of the share of forgotten samples per predicted class. {said}.",
        draw=partial(plots.destinations, found=models, classes=views.classes),
        height=0.9 + 0.2 * (len(models) + 0.6) * len(names),
        table=Table(caption="Samples per predicted class", header=header, rows=_count_rows(views.classes, counts)),
    )
    return Section(words=_missing(views), pictures=(picture,))


def metrics(record: RunRecord) -> Section:
    """The value of every further metric, or why there is none."""
    if not record.metrics:
        text = "No further metrics: list their names in evaluation.metrics; unlearnkit methods shows all."
        return Section(words=(text,))
    rows, held = [], {feature.name for feature in record.features}
    for metric, values in record.metrics.items():
        cells: dict[str, dict[str, str]] = {}
        for name, value in values.items():
            one = re.match(r"retrained \d+ (.*)", name)
            if one and f"{metric} {one[1]}" in held:
                continue  # in the table of what the features hold
            first, _, rest = name.partition(" ")
            model, quantity = (first, rest) if first in _MODELS and rest else ("unlearned", name)
            reason = record.not_applicable.get(metric, {}).get(name, "")
            if value is None:
                text = reason or "no reason given"
            else:
                text = f"{number(value)} ({reason})" if reason else number(value)
            cells.setdefault(quantity, {})[model] = text
        rows += [(f"{metric}: {quantity}", *(row.get(m, "–") for m in _MODELS)) for quantity, row in cells.items()]
    table = Table(caption="Every metric", header=("metric", *_MODELS), rows=tuple(rows))
    return Section(tables=(table,))


def times(record: RunRecord) -> Section:
    """Seconds per stage, and peak memory."""
    seconds = record.report.seconds
    if not seconds:
        return Section(words=("No stage was timed.",))
    memory = record.memory
    held = [
        f"{what} {size / 2**20:,.0f} MiB"
        for what, size in (("host", memory and memory.host), ("CUDA", memory and memory.cuda))
        if size is not None
    ]
    words = (f"Peak memory of the process: {', '.join(held)}.",) if held else ()
    rows = tuple((stage, number(value)) for stage, value in seconds.items())
    longest = max(seconds, key=lambda stage: seconds[stage])
    picture = Picture(
        name="timings",
        title="Seconds per stage",
        caption="Wall-clock time. All methods of a run share the importances; retrained models and evaluation are not "
        "part of the cost of an edit.",
        alternative=f"Bars of seconds. {'; '.join(f'{stage}: {value}' for stage, value in rows)}. Longest: {longest}.",
        draw=partial(plots.timings, seconds=seconds),
        height=0.9 + 0.32 * len(rows),
        table=Table(caption="Seconds per stage", header=("stage", "seconds"), rows=rows),
    )
    return Section(words=words, pictures=(picture,))


def provenance(record: RunRecord) -> Section:
    """Options, importances, versions and digests."""
    report, manifest = record.report, record.manifest
    options = () if report.steps else tuple((name, str(value)) for name, value in report.options.items())
    steps = tuple(
        (
            step.method,
            ", ".join(f"{name} = {value}" for name, value in step.options.items()),
            percent(step.fraction),
            number(step.seconds.get("edit")),
        )
        for step in report.steps
    )
    facts = {
        "method": report.method,
        "from": report.provider or "no plugin: an object in Python",
        "weights before": report.model_before,
        "weights after": report.model_after,
        "data": manifest.get("data_digest", ""),
        "device": manifest.get("device", ""),
        "threads": manifest.get("threads", ""),
        "platform": manifest.get("platform", ""),
        "finished (UTC)": manifest.get("finished", ""),
        **{f"version of {name}": version for name, version in manifest.get("versions", {}).items()},
    }
    rows = tuple((name, str(value)) for name, value in facts.items() if value != "")
    evidence = tuple(
        (
            e.role,
            f"{e.samples:,}",
            e.batches,
            ", ".join(filter(None, (e.fingerprint.estimator, e.fingerprint.objective, e.fingerprint.options))),
            ", ".join(filter(None, (e.fingerprint.sample, error_text(e.relative_error)))) or "exact",
        )
        for e in report.evidence
    )
    tables = [Table(caption="Where it comes from", header=("what", "value"), rows=rows)]
    if evidence:
        header = ("importance", "samples", "batches", "how", "standard deviation")
        tables.insert(0, Table(caption="Importances that were used", header=header, rows=evidence))
    if options:
        tables.insert(0, Table(caption=f"Options of {report.method}", header=("option", "value"), rows=options))
    if steps:
        columns = ("method", "options", "weights changed", "seconds")
        tables.insert(0, Table(caption=f"Steps of {report.method}, in order", header=columns, rows=steps))
    config: Mapping[str, Any] = manifest.get("config", {})
    folded = (("The configuration", json.dumps(config, indent=2, ensure_ascii=False)),) if config else ()
    return Section(words=report.uncertainty(), tables=tuple(tables), folded=folded)


def _listed(values: Any) -> str:
    if not isinstance(values, list | tuple):
        return str(values)
    shown = ", ".join(map(str, values[:_SHOWN]))
    return f"{shown}, … ({len(values)} in all)" if len(values) > _SHOWN else shown


def _why(views: PlotData | None, what: str) -> str:
    return _NOT_TAKEN if views is None else f"There is nothing to show: {views.reasons.get(what, 'no reason given')}."


def _missing(views: PlotData) -> tuple[str, ...]:
    reason = views.reasons.get("retrained")
    return (f"The retrained model is missing: {reason}.",) if reason else ()


def _count_rows(names: Sequence[str], counts: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
    columns = zip(names, *counts, strict=True)
    return tuple((name, *map(str, row)) for name, *row in columns if any(row))


def _histogram(mine: Sequence[Histogram], model: str) -> Picture:
    edges = np.linspace(0, 1, BINS + 1)
    rows = _count_rows([f"{low:.2f} – {high:.2f}" for low, high in pairwise(edges)], [h.counts for h in mine])
    middles = (edges[1:] + edges[:-1]) / 2
    said = ", ".join(f"{h.samples} samples {float(np.dot(shares(h.counts), middles)):.2f} on average" for h in mine)
    return Picture(
        name=f"confidence-{model}",
        title=f"Confidence of the {model} model",
        caption="The model's confidence in the right label.",
        alternative=f"Histogram of the probability of the label: {said}.",
        draw=partial(plots.confidence_histogram, histograms=mine, model=model),
        height=2.9,
        table=Table(caption="Samples per bin", header=("probability", *(h.samples for h in mine)), rows=rows),
    )


def _roc(curves: Sequence[RocCurve], attack: str) -> Picture:
    mine = [curve for curve in curves if curve.attack == attack]
    rows = tuple((curve.model, number(curve.auc)) for curve in mine)
    return Picture(
        name=f"roc-{attack.lower()}",
        title=f"The {attack} attack",
        caption="True against false positives; the legend has the AUC of each curve.",
        alternative=f"ROC curves of the {attack} attack. AUC: {', '.join(f'{m} {auc}' for m, auc in rows)}.",
        draw=partial(plots.roc_curves, curves=mine, attack=attack),
        height=4.6,
        table=Table(caption="Area under the curve", header=("model", "AUC"), rows=rows),
    )
