"""The result of a search: every candidate that was tried, and the chosen one."""

import math
from collections.abc import Mapping
from typing import Any, final

import attrs

from unlearnkit.unlearning.report import Report
from unlearnkit.utils.structuring import structure


@final
@attrs.frozen(kw_only=True)
class Setting:
    """What is varied between edits.

    Attributes:
        fraction: The share of weights to select, 0 … 1; see `OperatingCurve`.
        strength: λ as a multiple of the operating option (α): 1 makes SSD's edit continuous at its threshold, 0 sets
            the selected weights to 0. None for a method without a strength option.
        reestimate: Whether BatchNorm's running statistics are re-estimated on retain data.
    """

    fraction: float
    strength: float | None
    reestimate: bool


@final
@attrs.frozen(kw_only=True)
class Candidate:
    """An edit and its scores on the validation data.

    Attributes:
        setting: The requested setting.
        options: The method's options that realise it.
        selected: The selected fraction that was reached.
        changed: The share of weights that changed.
        retain: Accuracy on retained validation data, 0 … 1.
        forget: Accuracy on validation data of the forget set, 0 … 1.
        retain_probability: Mean probability of the label on retained validation data, 0 … 1.
        forget_probability: The same on validation data of the forget set.
        distance: |forget − target|.
        damage: Loss of retain accuracy against the original, below 0 for a gain.
        score: (1 − distance)·(1 − damage), damage at least 0: Tug-of-War against the target and the original.
        margin: The same with probabilities instead of accuracies, against the target and 1: it ranks edits that
            predict the same.
        feasible: Whether the damage is within the budget.
        problem: Why the edit failed, or ""; a failed edit has no scores and is not feasible.
    """

    setting: Setting
    options: dict[str, Any]
    selected: float = 0.0
    changed: float = 0.0
    retain: float = 0.0
    forget: float = 0.0
    retain_probability: float = 0.0
    forget_probability: float = 0.0
    distance: float = 1.0
    damage: float = 1.0
    score: float = 0.0
    margin: float = 0.0
    feasible: bool = False
    problem: str = ""

    @property
    def order(self) -> tuple[float, float, float]:
        """Return the sort key: the best candidate has the largest score, then margin, then the least change."""
        return (self.score, self.margin, -self.changed)

    def beats(self, other: "Candidate") -> bool:
        """Return whether this one is nearer to the target at no more damage, or as near at less."""
        mine, theirs = (self.distance, self.damage), (other.distance, other.damage)
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


@final
@attrs.frozen(kw_only=True)
class Tuning:
    """The result of a search.

    Attributes:
        target: The forget accuracy that was aimed at.
        target_source: Its origin, in words.
        budget: The largest loss of retain accuracy allowed.
        original_retain: The original's accuracy on retained validation data.
        original_forget: The original's accuracy on the forget set's validation data.
        candidates: All edits that were tried, in order.
        chosen: The best candidate within the budget; None when there is none, and nothing was edited.
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
        """Describe the result in one or two sentences."""
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
        """Read what `to_dict` wrote; the report is stored separately."""
        known = {f.name: plain[f.name] for f in attrs.fields(cls) if f.name in plain and f.name != "chosen"}
        found = structure(known, cls, where="tuning")
        place = plain.get("chosen")
        return found if place is None else attrs.evolve(found, chosen=found.candidates[place])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the frontier as indices of candidates, null for infinite numbers."""
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
