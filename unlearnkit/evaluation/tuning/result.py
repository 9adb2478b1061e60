"""The result of a search: every candidate that was tried, and the chosen one."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import attrs

from unlearnkit.unlearning.report import Report
from unlearnkit.utils import display
from unlearnkit.utils.structuring import structure
from unlearnkit.utils.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@final
@attrs.frozen(kw_only=True)
class Setting:
    """What is varied between edits."""

    fraction: float
    # λ as a multiple of α: 1 makes SSD's edit continuous at its threshold, 0 sets the selected weights to 0.
    strength: float | None
    reestimate: bool


@final
@attrs.frozen(kw_only=True)
class Candidate:
    """An edit and its scores on the validation data; ``problem`` says why it failed, ``setting`` is None if it trained.

    ``damage`` is the loss of retain accuracy against the original, and ``distance`` is |forget − target|. ``score`` is
    Tug-of-War against the target and the original, times 1 − ``gap`` where a search has a further aim; ``margin`` is
    the same with mean probabilities of the label, and ranks edits that predict the same. ``steps`` counts the batches
    that the edit went through, where the search counts them.
    """

    setting: Setting | None = None
    options: dict[str, Any]
    selected: float = 0.0
    changed: float = 0.0
    retain: float = 0.0
    forget: float = 0.0
    retain_probability: float = 0.0
    forget_probability: float = 0.0
    distance: float = 1.0
    damage: float = 1.0
    gap: float = 0.0
    score: float = 0.0
    margin: float = 0.0
    feasible: bool = False
    steps: int = 0
    problem: str = ""

    @property
    def share(self) -> float:
        """The share of weights that it selects; of a method that trains, the share that changed."""
        return self.changed if self.setting is None else self.selected

    @property
    def order(self) -> tuple[float, float, float]:
        """Sort key: the best candidate has the largest score, then margin, then the least change."""
        return (self.score, self.margin, -self.changed)

    def beats(self, other: "Candidate") -> bool:
        """Whether this one is nearer to the target at no more damage, or as near at less."""
        mine, theirs = (self.distance, self.damage), (other.distance, other.damage)
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


@final
@attrs.frozen(kw_only=True, repr=False)
class Tuning:
    """The result of a search: every candidate in order, and the chosen one, or None where nothing was edited.

    A notebook shows the frontier.

    The aim is reached within the ``tolerance`` of the forget accuracy, which the number of validation samples gives.
    """

    target: float
    target_source: str
    budget: float
    original_retain: float
    original_forget: float
    original_gap: float = 0.0
    tolerance: float = 0.1
    candidates: tuple[Candidate, ...] = ()
    chosen: Candidate | None = None
    report: Report | None = None
    seconds: float = 0.0

    def __repr__(self) -> str:
        found = "nothing was edited" if self.chosen is None else f"chosen: {shown_options(self.chosen)}"
        return f"Tuning({len(self.candidates)} edits tried, {found})"

    @property
    def shown(self) -> list[Candidate]:
        """The rows of a table: the frontier, and what was chosen, which may lie below it."""
        others = [] if self.chosen is None or any(c is self.chosen for c in self.frontier) else [self.chosen]
        return [*self.frontier, *others]

    def _repr_html_(self) -> str:
        header = ("options", "changed", "retain accuracy", "forget accuracy", "")
        numbers = ((c, percent(c.changed), f"{c.retain:.3f}", f"{c.forget:.3f}") for c in self.shown)
        rows = ((shown_options(c), *cells, "chosen" if c is self.chosen else "") for c, *cells in numbers)
        return display.paragraphs(self.sentence()) + display.table(header, rows)

    def to_frame(self) -> Any:
        """Return a pandas data frame with a row for each edit that was tried, in order."""
        rows = []
        for candidate in self.candidates:
            plain = attrs.asdict(candidate, filter=attrs.filters.exclude("setting", "options"))
            rows.append({**candidate.options, **plain, "chosen": candidate is self.chosen})
        return display.frame(rows)

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw every edit that was tried, the frontier, the chosen one, the target and the budget.

        On matplotlib axes, new ones by default, which are returned.
        """
        from unlearnkit.utils.plotting import LOOKS, OTHER, axes_for, grid, legend_above  # noqa: PLC0415

        axes = axes or axes_for(12)
        axes.axhline(self.target, color=OTHER.colour, linestyle="--", linewidth=1, label="target")
        limit = self.original_retain - self.budget
        axes.axvline(limit, color=OTHER.colour, linestyle=":", linewidth=1.5, label="budget")
        if not self.aim_reached and self.budget_to_reach is not None:
            needed = self.original_retain - self.budget_to_reach
            axes.axvline(
                needed, color=OTHER.colour, linestyle="-.", linewidth=1.5, label="budget that reaches the target"
            )
        tried = [(c.retain, c.forget) for c in self.candidates if not c.problem]
        best = sorted((c.retain, c.forget) for c in self.frontier)
        original = [(self.original_retain, self.original_forget)]
        chosen = [] if self.chosen is None else [(self.chosen.retain, self.chosen.forget)]
        kept, before, after = LOOKS["retrained"], LOOKS["original"], LOOKS["unlearned"]
        for label, points, colour, marker, line, size in (
            ("tried", tried, OTHER.colour, "x", "none", 5),
            ("frontier", best, kept.colour, kept.marker, kept.line, 6),
            ("original", original, before.colour, before.marker, "none", 8),
            ("chosen", chosen, after.colour, "*", "none", 15),
        ):
            if points or label != "chosen":
                x, y = zip(*points, strict=True) if points else ((), ())
                axes.plot(x, y, color=colour, marker=marker, linestyle=line, ms=size, label=label)
        axes.set(xlabel="retain accuracy", ylabel="forget accuracy", ylim=(-0.04, 1.04))
        axes.margins(x=0.06)
        grid(axes, "both")
        legend_above(axes)
        return axes

    @property
    def frontier(self) -> tuple[Candidate, ...]:
        """The candidates that no other beats in both distance and damage, by rising damage."""
        made = [c for c in self.candidates if not c.problem]
        best = [c for c in made if not any(other.beats(c) for other in made)]
        return tuple(sorted(best, key=lambda c: (c.damage, c.distance)))

    @property
    def best(self) -> Candidate | None:
        """Return the best candidate that keeps the budget and is better than no edit; None if there is none."""
        possible = (c for c in self.candidates if c.feasible and self.better_than_nothing(c))
        return max(possible, key=lambda c: c.order, default=None)

    @property
    def aim_reached(self) -> bool:
        """Whether the model, edited or not, is within the tolerance of the target."""
        return self.distance_left <= self.tolerance

    @property
    def distance_left(self) -> float:
        """Return |forget accuracy − target| of the chosen edit, or of the original where nothing was edited."""
        return abs(self.original_forget - self.target) if self.chosen is None else self.chosen.distance

    @property
    def budget_to_reach(self) -> float | None:
        """Return the smallest budget with which an edit that was tried reaches the aim; None if none does."""
        return min((max(c.damage, 0.0) for c in self.frontier if c.distance <= self.tolerance), default=None)

    def better_than_nothing(self, candidate: Candidate) -> bool:
        """Whether a candidate is nearer to the aim than the original, by more than the accuracy that it loses."""
        return candidate.score > (1 - abs(self.original_forget - self.target)) * (1 - self.original_gap)

    def sentence(self) -> str:
        """Describe the result in one or two sentences."""
        tried = f"{len(self.candidates)} edits tried"
        aim = f"forget accuracy {self.target:.3f} ({self.target_source})"
        if self.chosen is not None:
            c = self.chosen
            norm = ", BatchNorm re-estimated" if c.setting is not None and c.setting.reestimate else ""
            share = f", {percent(c.selected)} selected" if c.setting is not None else ""
            return (
                f"{tried}; chosen: {shown_options(c)}{share}{norm}. On validation data forget "
                f"accuracy {self.original_forget:.3f}→{c.forget:.3f} (aim {self.target:.3f}), retain accuracy "
                f"{self.original_retain:.3f}→{c.retain:.3f}.{self._left()}"
            )
        made = [c for c in self.candidates if not c.problem]
        if not made:
            return f"{tried}, and none could be made: nothing was edited."
        best = min(made, key=lambda c: (c.damage, c.distance))
        if any(c.feasible for c in made):
            return (
                f"{tried}, and none is better than leaving the model as it is: nothing was edited. Aim: {aim}; the "
                f"original has {self.original_forget:.3f}.{self._left()}"
            )
        return (
            f"{tried}, and none keeps the loss of retain accuracy within {self.budget:g}: nothing was edited. Aim: "
            f"{aim}. The least harmful ({shown_options(best)}) loses {best.damage:.3f}.{self._left()}"
        )

    def _left(self) -> str:
        if self.aim_reached:
            return ""
        left, budget = f" The aim is not reached: {self.distance_left:.3f} is left", self.budget_to_reach
        if budget is None:
            return f"{left}, and no edit that was tried reaches it."
        if budget <= self.budget:
            return f"{left}; an edit that was tried reaches it, but loses more than it gains."
        up = math.ceil(1000 * budget - 1e-6) / 1000
        return f"{left}; a budget of {max(up, budget):.6g} would reach it (now {self.budget:g})."

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Tuning":
        """Read what `to_dict` wrote; the report is stored elsewhere."""
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
        for derived in ("aim_reached", "distance_left", "budget_to_reach"):
            plain[derived] = getattr(self, derived)
        plain["sentence"] = self.sentence()
        return plain


def shown_options(candidate: Candidate, sign: str = " = ") -> str:
    """Format the options of a candidate, as ``"alpha = 3.1, lam = 0"``."""
    return ", ".join(
        f"{name}{sign}{value:.4g}" if isinstance(value, float) else f"{name}{sign}{value}"
        for name, value in candidate.options.items()
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
