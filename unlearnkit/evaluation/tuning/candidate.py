"""One edit that was tried: what was asked for, and what it did to the validation data."""

from typing import Any, final

import attrs


@final
@attrs.frozen(kw_only=True)
class Setting:
    """What distinguishes one edit from another.

    Attributes:
        fraction: The share of weights to select, 0 … 1; see `OperatingCurve`.
        strength: λ as a multiple of the operating option (α): 1 makes SSD's edit continuous at its threshold, 0 sets
            what is selected to 0. None for a method without a strength option.
        reestimate: Whether BatchNorm's running statistics are taken again on retain data.
    """

    fraction: float
    strength: float | None
    reestimate: bool


@final
@attrs.frozen(kw_only=True)
class Candidate:
    """An edit and its scores on the validation data.

    Attributes:
        setting: What was asked for.
        options: The method's options that it became.
        selected: The selected fraction that was reached.
        changed: The share of weights that changed.
        retain: Accuracy on retained validation data, 0 … 1.
        forget: Accuracy on validation data of the forget set, 0 … 1.
        retain_probability: Mean probability of the label on retained validation data, 0 … 1.
        forget_probability: The same on validation data of the forget set.
        distance: |forget − target|.
        damage: Loss of retain accuracy against the original, below 0 for a gain.
        score: (1 − distance)·(1 − damage), damage at least 0: Tug-of-War against the target and the original.
        margin: The same of probabilities instead of accuracies, against the target and 1: it tells edits apart that
            predict the same.
        feasible: Whether the damage is within the budget.
        problem: Why the edit could not be made, or "": an edit that fails has no scores and is not feasible.
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
        """Sort by this: the best candidate has the largest; of equal scores the largest margin, then least change."""
        return (self.score, self.margin, -self.changed)

    def beats(self, other: "Candidate") -> bool:
        """Say whether this one is at least as good in both respects and better in one.

        Args:
            other: Another candidate.

        Returns:
            Whether it is nearer to the target at no more damage, or as near at less.
        """
        mine, theirs = (self.distance, self.damage), (other.distance, other.damage)
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]
