"""The sections of a page; each says in words why it has nothing to show."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from unlearnkit.evaluation.metrics.retrain_gap import ENOUGH
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.importance.provenance import error_text
from unlearnkit.reporting.page.parts import Picture, Section, Table, number
from unlearnkit.reporting.plots import accuracy_bars, edited_layers, timings, tuning_frontier
from unlearnkit.reporting.plots.model_plots import layers_of
from unlearnkit.reporting.record import RunRecord
from unlearnkit.reporting.verdict import near

_MODELS = ("unlearned", "original", "retrained")
_SHOWN = 12  # values of a list


def forgotten(record: RunRecord) -> Section:
    """Say what was forgotten."""
    facts, config = record.forget, record.manifest.get("config", {}).get("forget", {})
    rows = [(key, _listed(value)) for key, value in config.items() if value]
    if facts:
        share = f"{facts['samples']} of {facts['of']} training samples ({100 * facts['fraction']:.3g} %)"
        rows = [("scenario", str(facts["scenario"])), ("samples", share), *rows]
        rows.append(("digest of the forget set", str(facts["digest"])))
    labels = next((d for d in record.views.destinations if d.model == "label"), None) if record.views else None
    if labels is not None and record.views is not None:
        named = [f"{name} ({n})" for name, n in zip(record.views.classes, labels.counts, strict=True) if n]
        rows.append(("labels of the forgotten samples", _listed(named)))
    words = () if rows else ("The record does not say what was forgotten.",)
    tables = (Table(caption="What was forgotten", header=("what", "value"), rows=tuple(rows)),) if rows else ()
    return Section(words=words, tables=tables)


def scores(record: RunRecord) -> Section:
    """Show accuracy before and after the edit, and of retrained models."""
    if not record.after:
        return Section(words=("Nothing was measured.",))
    rows = []
    for split, after in record.after.items():
        before = record.before.get(split)
        known = [each[split] for each in record.retrained if split in each]
        accuracies = ", ".join(number(k.accuracy) for k in known) or "–"
        rows.append(
            (
                f"{split} ({after.samples})",
                number(before and before.accuracy),
                number(after.accuracy),
                accuracies,
                number(before and before.loss),
                number(after.loss),
                ", ".join(number(k.loss) for k in known) or "–",
            )
        )
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
        draw=partial(accuracy_bars, before=record.before, after=record.after, retrained=record.retrained),
        height=0.9 + 0.7 * len(rows),
        table=table,
    )
    return Section(words=words, pictures=(picture,))


def gap(record: RunRecord) -> Section:
    """Compare each measure with the retrained models."""
    measures = record.judgement().measures
    if not measures:
        count = len(record.retrained)
        why = "No retrained model at hand" if not count else "Nothing was measured on both sides"
        return Section(
            words=(f"{why}: name checkpoints in evaluation.retrained, or seeds in evaluation.retrained_seeds.",)
        )
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
    words = (_about_gaps(len(record.retrained)),)
    header = ("measure", "unlearned", "retrained: mean", "sd", "difference", "gap")
    table = Table(caption="The gap to retraining", header=header, rows=tuple(rows))
    return Section(words=words, tables=(table,))


def _about_gaps(models: int) -> str:
    said = (
        "A gap counts in both directions: forget accuracy below that of retrained models is a gap too. sd is the "
        f"standard deviation of {models} retrained models; it covers their training seeds only."
    )
    if models < ENOUGH:
        return said
    return (
        f"{said} The verdict's limit is {near(models):.1f} sd: one more retrained model would lie within it 95 times "
        "in 100. It is wide when there are few models. Where all have the same value, an accuracy counts as equal "
        "within one sample, and an AUC within 1.96 standard errors of guessing."
    )


def search(record: RunRecord) -> Section:
    """Show what was tried."""
    if record.tuning is None:
        return Section(
            words=("The options were given, not looked for: unlearnkit tune finds them on validation data.",)
        )
    tuning = Tuning.from_dict(record.tuning)
    frontier = {id(c) for c in tuning.frontier}
    rows = tuple(
        (
            ", ".join(f"{name} = {number(value)}" for name, value in c.options.items()),
            f"{100 * c.selected:.3g} %",
            "again" if c.setting.reestimate else "kept",
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
        "target forget accuracy. Left of the dotted line, more retain accuracy is lost than the budget allows.",
        alternative=f"Retain against forget accuracy of {len(rows)} edits. {tuning.sentence()}",
        draw=partial(tuning_frontier, tuning=tuning),
        height=4.2,
        table=table,
    )
    return Section(words=(tuning.sentence(),), pictures=(picture,))


def layers(record: RunRecord) -> Section:
    """Show which layers were edited."""
    report = record.report
    if not report.size:
        return Section(words=("No edit was made.",))
    buffers = f" Buffers that changed: {_listed(report.buffers_changed)}." if report.buffers_changed else ""
    words = (f"{report.sentence()}{buffers}",)
    if not report.changed:
        return Section(words=words)
    shown = layers_of(report)
    rows = tuple((t.name, f"{t.size:,}", f"{t.changed:,}", f"{100 * t.fraction:.3g} %") for t in report.tensors)
    table = Table(caption="Every tensor", header=("tensor", "weights", "changed", "share"), rows=rows)
    most = max(shown, key=lambda layer: layer.fraction)
    touched = sum(1 for layer in shown if layer.changed)
    cut = "" if len(shown) == len(rows) else " Tensors of one module stand together; the table has each."
    picture = Picture(
        name="edited-layers",
        title="Share of changed weights per layer",
        caption=f"From the input above to the output below.{cut}",
        alternative=f"Bars of the changed share. {touched} of {len(shown)} layers were edited, {most.name} most: "
        f"{100 * most.fraction:.3g} % of {most.size:,} weights.",
        draw=partial(edited_layers, report=report, layers=shown),
        height=0.9 + 0.24 * len(shown),
        table=table,
    )
    return Section(words=words, pictures=(picture,))


def metrics(record: RunRecord) -> Section:
    """Show every further metric, or why it has no value."""
    if not record.metrics:
        return Section(
            words=("None were asked for: evaluation.metrics names them, and unlearnkit methods lists them.",)
        )
    tables = (metric_table(record.metrics, record.not_applicable),)
    return Section(tables=tables)


def metric_table(metrics: Mapping[str, Mapping[str, float | None]], reasons: Mapping[str, Mapping[str, str]]) -> Table:
    """Tabulate each metric's value for each model, or the reason why there is none.

    Example:
        >>> table = metric_table({"m": {"AUC": 0.5, "original AUC": None}}, {"m": {"original AUC": "no model"}})
        >>> table.rows
        (('m: AUC', '0.500', 'no model', '–'),)
    """
    rows = []
    for metric, values in metrics.items():
        cells: dict[str, dict[str, str]] = {}
        for name, value in values.items():
            first, _, rest = name.partition(" ")
            model, quantity = (first, rest) if first in _MODELS and rest else ("unlearned", name)
            reason = reasons.get(metric, {}).get(name, "no reason given")
            cells.setdefault(quantity, {})[model] = reason if value is None else number(value)
        rows += [(f"{metric}: {quantity}", *(row.get(m, "–") for m in _MODELS)) for quantity, row in cells.items()]
    return Table(caption="Every metric that was asked for", header=("metric", *_MODELS), rows=tuple(rows))


def times(record: RunRecord) -> Section:
    """Show where the time went."""
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
        draw=partial(timings, seconds=seconds),
        height=0.9 + 0.32 * len(rows),
        table=Table(caption="Seconds per stage", header=("stage", "seconds"), rows=rows),
    )
    return Section(words=words, pictures=(picture,))


def provenance(record: RunRecord) -> Section:
    """Show every option, and where everything comes from."""
    report, manifest = record.report, record.manifest
    options = tuple((name, str(value)) for name, value in report.options.items())
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
            "exact" if e.error == 0 else error_text(e.error),
        )
        for e in report.evidence
    )
    tables = [Table(caption="Where it comes from", header=("what", "value"), rows=rows)]
    if evidence:
        header = ("importance", "samples", "batches", "how", "standard deviation")
        tables.insert(0, Table(caption="Importances that were used", header=header, rows=evidence))
    if options:
        tables.insert(0, Table(caption=f"Options of {report.method}", header=("option", "value"), rows=options))
    config: Mapping[str, Any] = manifest.get("config", {})
    folded = (("The whole configuration", json.dumps(config, indent=2, ensure_ascii=False)),) if config else ()
    return Section(
        words=report.uncertainty(),
        tables=tuple(tables),
        folded=folded,
    )


def _listed(values: Any) -> str:
    if not isinstance(values, list | tuple):
        return str(values)
    shown = ", ".join(map(str, values[:_SHOWN]))
    return f"{shown}, … ({len(values)} in all)" if len(values) > _SHOWN else shown
