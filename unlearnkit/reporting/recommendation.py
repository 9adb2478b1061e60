"""What `recommend` tried, and what it chose."""

from collections.abc import Mapping
from typing import Any, final

import attrs

ORIGINAL, SCRATCH = "leave as it is", "from scratch"


@final
@attrs.frozen(kw_only=True)
class Attempt:
    """The best edit of one method, or the reason why there is none.

    ``epochs`` are passes over the retain set, of this edit (a step on a batch of each set counts twice);
    ``search_epochs`` are those of all ``trials``. ``seconds`` is the time of this edit, ``search_seconds`` that of the
    search. ``forget`` and ``retain`` are accuracies on the forget set and on held-out samples, ``swap`` is the metric
    head-swap, ``recovery`` the forget accuracy after an epoch on the retain set. ``score`` is 1 for a model that is as
    aimed at and loses no retain accuracy.
    """

    name: str
    options: Mapping[str, Any] = attrs.field(factory=dict)
    trials: int = 0
    epochs: float = 0.0
    search_epochs: float = 0.0
    seconds: float = 0.0
    search_seconds: float = 0.0
    forget: float | None = None
    retain: float | None = None
    swap: float | None = None
    recovery: float | None = None
    score: float = 0.0
    problem: str = ""

    @property
    def values(self) -> dict[str, str]:
        """Each column of the table, in words."""
        shown = (f"{name} = {v:.3g}" if isinstance(v, float) else f"{name} = {v}" for name, v in self.options.items())
        rates = {name: getattr(self, name) for name in ("forget", "retain", "swap", "recovery")}
        return {
            "tried": self.name,
            "options": ", ".join(shown),
            "edits": str(self.trials),
            "epochs": f"{self.epochs:.1f}" if self.forget is not None else "–",
            "seconds": f"{self.seconds:.0f}" if self.forget is not None else "–",
            **{name: "–" if rate is None else f"{rate:.3f}" for name, rate in rates.items()},
            "score": f"{self.score:.3f}" if self.forget is not None else "–",
        }


@final
@attrs.frozen(kw_only=True)
class Recommendation:
    """Everything that was tried for one forget set; ``chosen`` is the place of an attempt, None where none is better.

    ``target`` has the values to come near to, ``source`` says where they come from. Costs are in epochs over the retain
    set: ``retraining`` is that of retraining, ``limit`` the largest of an edit, ``measured`` that of the audits that
    belong to no method. ``swap_error`` is the sampling error of head-swap.
    """

    attempts: tuple[Attempt, ...]
    chosen: int | None
    target: Mapping[str, float]
    source: str
    budget: float
    limit: float
    retraining: int
    measured: int = 0
    swap_error: float = 0.0

    @property
    def best(self) -> Attempt | None:
        """The chosen attempt; None where nothing was edited."""
        return None if self.chosen is None else self.attempts[self.chosen]

    def sentence(self) -> str:
        """Say what was chosen, beside training from scratch, and what it cost."""
        spent = self.measured + sum(attempt.search_epochs for attempt in self.attempts)
        edits = sum(attempt.trials for attempt in self.attempts)
        original, aim = self.attempts[0].swap, self.target["swap"]
        cost = f"The search took {spent:.1f} epochs ({spent / self.retraining:.1f} times retraining), {edits} edits."
        if original is not None and abs(original - aim) <= self.swap_error:
            cost += f" Head-swap cannot tell forgetting from hiding here: original {original:.3f}, aim {aim:.3f}."
        if self.best is None:
            return (
                "Nothing was edited: no edit and no training from scratch within "
                f"{self.limit:g} of {self.retraining} epochs is better than leaving the model as it is, with a loss of "
                f"retain accuracy of at most {self.budget:g}. {cost}"
            )
        others = [attempt for attempt in self.attempts if attempt.name == SCRATCH and attempt is not self.best]
        beside = "".join(
            f", training from scratch at the same limit {other.score:.3f}{other.problem and f' ({other.problem})'}"
            for other in others
        )
        return (
            f"Recommended: {self.best.name}, score {self.best.score:.3f}{beside}; {self.best.epochs:.1f} epochs, "
            f"{self.best.epochs / self.retraining:.2f} of retraining. {cost}"
        )
