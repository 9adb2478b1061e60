"""The sections of a page, in order; each says in words what it cannot show."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from unlearnkit.evaluation.gap import ENOUGH
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.importance.provenance import error_text
from unlearnkit.reporting.judgement import near
from unlearnkit.reporting.page.measured import metric_table
from unlearnkit.reporting.page.parts import Picture, Section, Table, number
from unlearnkit.reporting.plots import accuracy_bars, edited_layers, timings, tuning_frontier
from unlearnkit.reporting.plots.layers import layers_of
from unlearnkit.reporting.record import RunRecord

_SHOWN = 12  # values of a list, before it is cut


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
    return Section(name="forgotten", title="What was forgotten", words=words, tables=tables)


def scores(record: RunRecord) -> Section:
    """Show accuracy before and after, beside retraining."""
    title = "Accuracy before and after"
    if not record.after:
        return Section(name="accuracy", title=title, words=("Nothing was measured.",))
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
        return Section(
            name="accuracy", title=title, words=(*words, "No classification: there is only a loss."), tables=(table,)
        )
    said = "; ".join(
        f"{row[0]}: original {row[1]}, unlearned {row[2]}" + (f", retrained {row[3]}" if record.retrained else "")
        for row in rows
    )
    picture = Picture(
        name="accuracy-bars",
        title="Accuracy per split",
        caption="Retain accuracy should stay, and forget accuracy should come near that of the retrained models, not "
        "below it. The line at the end of a bar is one standard deviation of the retrained models.",
        alternative=f"Bars of accuracy. {said}.",
        draw=partial(accuracy_bars, before=record.before, after=record.after, retrained=record.retrained),
        height=0.9 + 0.7 * len(rows),
        table=table,
    )
    return Section(name="accuracy", title=title, words=words, pictures=(picture,))


def gap(record: RunRecord) -> Section:
    """Show each measure beside the retrained models."""
    title, measures = "Is it like retraining?", record.judgement().measures
    if not measures:
        count = len(record.retrained)
        why = "No retrained model at hand" if not count else "Nothing was measured on both sides"
        words = (f"{why}: name checkpoints in evaluation.retrained, or seeds in evaluation.retrained_seeds.",)
        return Section(name="gap", title=title, words=words)
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
    return Section(name="gap", title=title, words=words, tables=(table,))


def _about_gaps(models: int) -> str:
    said = (
        "A gap counts in both directions: below a retrained model's forget accuracy is too much forgotten. sd is the "
        f"standard deviation of {models} retrained models; it covers their training seeds only."
    )
    if models < ENOUGH:
        return said
    return (
        f"{said} One more retrained model would lie within {near(models):.1f} sd 95 times in 100: that is the "
        "verdict's limit, and it is wide when there are few. Where all agree, an accuracy counts as the same within "
        "one sample, and an area within 1.96 standard errors of guessing."
    )


def search(record: RunRecord) -> Section:
    """Show what was tried."""
    title = "The search for the edit"
    if record.tuning is None:
        words = ("The options were given, not looked for: unlearnkit tune finds them on validation data.",)
        return Section(name="search", title=title, words=words)
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
        caption="Each point is an edit, on validation data. Right is good; the dashed line is the forget accuracy that "
        "was aimed at, and left of the dotted line more retain accuracy is lost than the budget allows.",
        alternative=f"Retain against forget accuracy of {len(rows)} edits. {tuning.sentence()}",
        draw=partial(tuning_frontier, tuning=tuning),
        height=4.2,
        table=table,
    )
    return Section(name="search", title=title, words=(tuning.sentence(),), pictures=(picture,))


def layers(record: RunRecord) -> Section:
    """Show which layers were edited."""
    title, report = "Which layers were edited", record.report
    if not report.size:
        return Section(name="layers", title=title, words=("No edit was made.",))
    buffers = f" Buffers that changed: {_listed(report.buffers_changed)}." if report.buffers_changed else ""
    words = (f"{report.sentence()}{buffers}",)
    if not report.changed:
        return Section(name="layers", title=title, words=words)
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
    return Section(name="layers", title=title, words=words, pictures=(picture,))


def metrics(record: RunRecord) -> Section:
    """Show every further metric, or why it has no value."""
    title = "Further metrics"
    if not record.metrics:
        words = ("None were asked for: evaluation.metrics names them, and unlearnkit methods lists them.",)
        return Section(name="metrics", title=title, words=words)
    tables = (metric_table(record.metrics, record.not_applicable),)
    return Section(name="metrics", title=title, tables=tables)


def times(record: RunRecord) -> Section:
    """Show where the time went."""
    title, seconds = "Time and memory", record.report.seconds
    if not seconds:
        return Section(name="time", title=title, words=("No stage was timed.",))
    memory = record.memory
    held = [
        f"{what} {size / 2**20:,.0f} MiB"
        for what, size in (("host", memory and memory.host), ("CUDA", memory and memory.cuda))
        if size is not None
    ]
    words = (f"The most memory that the process had held: {', '.join(held)}.",) if held else ()
    rows = tuple((stage, number(value)) for stage, value in seconds.items())
    longest = max(seconds, key=lambda stage: seconds[stage])
    picture = Picture(
        name="timings",
        title="Seconds per stage",
        caption="Wall-clock time. The importances serve all methods of a run; retrained models and evaluation are "
        "there to measure by, and are no part of the price of an edit.",
        alternative=f"Bars of seconds. {'; '.join(f'{stage}: {value}' for stage, value in rows)}. Longest: {longest}.",
        draw=partial(timings, seconds=seconds),
        height=0.9 + 0.32 * len(rows),
        table=Table(caption="Seconds per stage", header=("stage", "seconds"), rows=rows),
    )
    return Section(name="time", title=title, words=words, pictures=(picture,))


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
        name="provenance",
        title="Options and provenance",
        words=report.uncertainty(),
        tables=tuple(tables),
        folded=folded,
    )


def _listed(values: Any) -> str:
    if not isinstance(values, list | tuple):
        return str(values)
    shown = ", ".join(map(str, values[:_SHOWN]))
    return f"{shown}, … ({len(values)} in all)" if len(values) > _SHOWN else shown
