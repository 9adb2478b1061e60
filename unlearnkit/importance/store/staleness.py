"""How old stored importances are, in edits of the model that they describe."""

from collections.abc import Iterable
from typing import final

import attrs

from unlearnkit.importance.store.manifest import Edit

MOST_EDITS = 10
MOST_CHANGED = 0.05


@final
@attrs.frozen(kw_only=True)
class Staleness:
    """What has happened to a model since its importances were measured.

    Attributes:
        edits: How many edits.
        fraction: The sum of the fractions of weights that they changed: an upper bound on what is different now.

    Example:
        >>> Staleness(edits=0, fraction=0.0).due
        False
        >>> print(Staleness(edits=2, fraction=0.08).sentence())
        The importances are 2 edits old (at most 8 % of the weights changed): measure them again.
    """

    edits: int
    fraction: float

    @classmethod
    def of(cls, edits: Iterable[Edit]) -> "Staleness":
        """Count edits.

        Args:
            edits: Since the importances were measured.

        Returns:
            Their number and fractions.
        """
        fractions = [edit.fraction for edit in edits]
        return cls(edits=len(fractions), fraction=min(1.0, sum(fractions)))

    @property
    def due(self) -> bool:
        """Whether the importances should be measured again: after 10 edits, or when 5 % of the weights changed."""
        return self.edits >= MOST_EDITS or self.fraction >= MOST_CHANGED

    def sentence(self) -> str:
        """Say it in words.

        Returns:
            One sentence.
        """
        if not self.edits:
            return "The importances are those of this model."
        old = f"The importances are {self.edits} edit{'s' * (self.edits != 1)} old"
        changed = f"at most {100 * self.fraction:.3g} % of the weights changed"
        return f"{old} ({changed}): " + ("measure them again." if self.due else "still in use.")
