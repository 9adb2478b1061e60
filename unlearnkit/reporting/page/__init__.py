"""``report.html``: one self-contained page, made from the record of a run."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from unlearnkit.reporting.page import sections
from unlearnkit.reporting.page.parts import svg
from unlearnkit.reporting.record import RunRecord
from unlearnkit.utils.files import write_text
from unlearnkit.utils.text import number, percent

__all__ = ["render_page", "write_page"]

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
    "near": ("good", "✓ within the spread of retraining"),
    "apart": ("bad", "≠ outside the spread of retraining"),
    "destroyed": ("bad", "✗ model destroyed"),
    "nothing": ("bad", "○ nothing done"),
    "no effect": ("bad", "○ no effect"),
}


def render_page(record: RunRecord) -> str:
    """Return the page of a run as HTML that refers to nothing outside itself."""
    environment = Environment(
        loader=PackageLoader("unlearnkit.reporting"),
        autoescape=True,  # names of classes, labels and files come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    judged = record.judgement()
    tone, badge = _BADGES.get(judged.kind, ("open", "? not comparable"))
    return environment.get_template(NAME).render(
        record=record,
        judged=judged,
        tone=tone,
        badge=badge,
        cards=_cards(record),
        sections=[(name, title, make(record)) for name, title, make in _SECTIONS],
        svg=svg,
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
