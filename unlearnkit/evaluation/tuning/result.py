"""What tuning found: the chosen edit and everything that was tried."""

import math
from collections.abc import Mapping
from typing import Any, final

import attrs

from unlearnkit.evaluation.tuning.candidate import Candidate
from unlearnkit.unlearning.report import Report
from unlearnkit.utils.structuring import structure


@final
@attrs.frozen(kw_only=True)
class Tuning:
    """The result of a search.

    Attributes:
        target: The forget accuracy that was aimed at.
        target_source: Where it comes from, in words.
        budget: The largest loss of retain accuracy that was allowed.
        original_retain: The original's accuracy on retained validation data.
        original_forget: The original's accuracy on the forget set's validation data.
        candidates: Everything that was tried, in order.
        chosen: The best candidate within the budget; None when there is none, and then nothing was edited.
        report: Of the chosen edit, or None.
        seconds: Of the whole search.
    """

    target: float
    target_source: str
    budget: float
    original_retain: float
    original_forget: float
    candidates: tuple[Candidate, ...] = ()
    chosen: Candidate | None = None
    report: Report | None = None
    seconds: float = 0.0

    @property
    def frontier(self) -> tuple[Candidate, ...]:
        """Return the candidates that no other beats in both distance and damage, by rising damage."""
        made = [c for c in self.candidates if not c.problem]
        best = [c for c in made if not any(other.beats(c) for other in made)]
        return tuple(sorted(best, key=lambda c: (c.damage, c.distance)))

    def sentence(self) -> str:
        """Say what was found.

        Returns:
            One or two sentences.
        """
        tried = f"{len(self.candidates)} edits tried"
        aim = f"forget accuracy {self.target:.3f} ({self.target_source})"
        if self.chosen is not None:
            c = self.chosen
            norm = ", BatchNorm re-estimated" if c.setting.reestimate else ""
            return (
                f"{tried}; chosen: {_options(c)}, {100 * c.selected:.3g} % selected{norm}. On validation data forget "
                f"accuracy {self.original_forget:.3f}→{c.forget:.3f} (aim {self.target:.3f}), retain accuracy "
                f"{self.original_retain:.3f}→{c.retain:.3f}."
            )
        made = [c for c in self.candidates if not c.problem]
        if not made:
            return f"{tried}, and none could be made: nothing was edited."
        best = min(made, key=lambda c: (c.damage, c.distance))
        return (
            f"{tried}, and none keeps the loss of retain accuracy within {self.budget:g}: nothing was edited. Aim: "
            f"{aim}. The least harmful ({_options(best)}) loses {best.damage:.3f}."
        )

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Tuning":
        """Read what `to_dict` wrote, but for the report, which stands beside it.

        Args:
            plain: Plain values.

        Returns:
            The search.
        """
        known = {f.name: plain[f.name] for f in attrs.fields(cls) if f.name in plain and f.name != "chosen"}
        found = structure(known, cls, where="tuning")
        place = plain.get("chosen")
        return found if place is None else attrs.evolve(found, chosen=found.candidates[place])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON.

        Returns:
            Nested dicts and lists; the frontier as positions in the list of candidates, null for what is infinite.
        """
        plain = attrs.asdict(self, filter=attrs.filters.exclude("report"))
        place = {id(c): i for i, c in enumerate(self.candidates)}
        plain["candidates"] = [_finite(c) for c in plain["candidates"]]
        plain["chosen"] = None if self.chosen is None else place[id(self.chosen)]
        plain["frontier"] = [place[id(c)] for c in self.frontier]
        plain["sentence"] = self.sentence()
        return plain


def _options(candidate: Candidate) -> str:
    return ", ".join(
        f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in candidate.options.items()
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
