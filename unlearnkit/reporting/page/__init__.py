"""``report.html``: one self-contained page, made from the record of a run."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from unlearnkit.reporting.page import sections
from unlearnkit.reporting.page.parts import Table, svg
from unlearnkit.reporting.record import RunRecord
from unlearnkit.utils.files import write_text
from unlearnkit.utils.text import number, percent

__all__ = ["Table", "render_comparison", "render_page", "write_page"]

NAME = "report.html"

_SECTIONS = (
    ("forgotten", "What was forgotten", sections.forgotten),
    ("accuracy", "Accuracy before and after", sections.scores),
    ("gap", "Is it like retraining?", sections.gap),
    ("search", "The search for the edit", sections.search),
    ("layers", "Which layers were edited", sections.layers),
    ("confidences", "Forgotten against unseen samples", sections.confidences),
    ("attacks", "Can an attacker tell?", sections.attacks),
    ("destinations", "Where forgotten samples go", sections.where),
    ("metrics", "Further metrics", sections.metrics),
    ("time", "Time and memory", sections.times),
    ("provenance", "Options and provenance", sections.provenance),
)
_BADGES = {
    "near": ("good", "✓ near retraining"),
    "outputs only": ("open", "? outputs only: the features do not tell"),
    "suppressed": ("bad", "≠ suppressed: hidden, not forgotten"),
    "over-forgotten": ("bad", "≠ over-forgotten"),
    "apart": ("bad", "≠ apart from retraining"),
    "destroyed": ("bad", "✗ model destroyed"),
    "nothing": ("bad", "○ nothing done"),
    "no effect": ("bad", "○ no effect"),
}
_HALVES = {
    "near": ("good", "near retraining"),
    "apart": ("bad", "not like retraining"),
    "over-forgotten": ("bad", "over-forgotten: worse than retraining"),
    "still there": ("bad", "still there, as in the original"),
    "cannot tell": ("", "measured, but not told apart from the original"),
    "not looked at": ("", "not looked at: evaluation.metrics lacks head-swap or recovery"),
}


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("unlearnkit.reporting"),
        autoescape=True,  # names of classes, labels and files come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(record: RunRecord) -> str:
    """Return the page of a run as HTML that refers to nothing outside itself."""
    judged = record.judgement()
    tone, badge = _BADGES.get(judged.kind, ("open", "? not comparable"))
    halves = (("What the outputs say", judged.says), ("What the features hold", judged.holds))
    made = [(name, title, make(record)) for name, title, make in _SECTIONS]
    return (
        _environment()
        .get_template(NAME)
        .render(
            record=record,
            judged=judged,
            tone=tone,
            badge=badge,
            halves=[(what, *_HALVES[half]) for what, half in halves if half],
            cards=_cards(record),
            sections=[one for one in made if not one[2].empty],
            missing=[(title, " ".join(section.words)) for _, title, section in made if section.empty],
            svg=svg,
        )
    )


def render_comparison(table: Table, *, words: Sequence[str] = (), failed: Sequence[str] = ()) -> str:
    """Return a page with one table, sorted by a click on a heading, that refers to nothing outside itself."""
    environment = _environment()
    script = environment.get_template("sort.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("comparison.html").render(
        table=table, words=words, failed=failed, script=script, script_hash=f"sha256-{digest}"
    )


def write_page(folder: Path, record: RunRecord) -> Path:
    """Write ``report.html`` into a folder of results atomically."""
    write_text(folder / NAME, render_page(record))
    return folder / NAME


def _cards(record: RunRecord) -> list[tuple[str, str]]:
    cards = [("weights changed", percent(record.report.fraction))]
    for split, after in record.after.items():
        before = record.before.get(split)
        if after.accuracy is not None:
            cards.append((split, f"{number(before and before.accuracy)} → {number(after.accuracy)}"))
    return cards
