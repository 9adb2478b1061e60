"""The search for the right edit: coarse to fine over selected fraction, strength and BatchNorm."""

import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Never, final

import attrs
from torch import nn

from unlearnkit.elementwise import ElementwiseUnlearner
from unlearnkit.errors import BudgetError, ConfigurationError, NonFiniteError, UnlearnKitWarning
from unlearnkit.evaluation.outputs import InapplicableError, outputs_of
from unlearnkit.evaluation.tuning.batch_norm import has_batch_norm, reestimate_batch_norm
from unlearnkit.evaluation.tuning.candidate import Candidate, Setting
from unlearnkit.evaluation.tuning.curve import OperatingCurve, with_options
from unlearnkit.evaluation.tuning.result import Tuning
from unlearnkit.evidence import Evidence
from unlearnkit.importance import Importance
from unlearnkit.objective import CrossEntropy, Objective
from unlearnkit.options import option
from unlearnkit.parameters import buffers, digest
from unlearnkit.progress import Progress, silent
from unlearnkit.report import Report


@final
@attrs.frozen(kw_only=True, eq=False)
class Validation:
    """Data to choose by: carved from the training set, never the test set.

    Attributes:
        retain: Batches of retained samples, iterable more than once.
        forget: Batches of samples to forget.
    """

    retain: Iterable[Any]
    forget: Iterable[Any]


class _RollBackError(Exception):
    """Raised inside an edit that was measured, so that it is undone bit by bit."""


def _shares(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


@final
@attrs.frozen(kw_only=True)
class Tuner:
    """Sweeps the operating point of an elementwise method, and makes the best edit within a budget.

    Each candidate costs one elementwise edit and one pass over the validation data (and one over retain data, where
    BatchNorm is re-estimated): no gradients, no training. Every one is rolled back bit by bit before the next. The
    first round is a grid of fractions × strengths × BatchNorm; each further round looks at finer fractions
    around the best of the most promising combinations. Equal input gives equal results: nothing is drawn.

    What is best: the largest (1 − |forget accuracy − target|)·(1 − loss of retain accuracy) among the candidates
    whose loss of retain accuracy is within the budget; among equals, that with the largest `Candidate.margin`.

    Example:
        >>> import torch
        >>> from unlearnkit_binary_mask import BinaryMask
        >>> model = nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.eye(2))
        >>> forget = Importance(totals={"weight": torch.tensor([[9.0, 0.0], [0.0, 1.0]])}, count=1)
        >>> full = Importance(totals={"weight": torch.ones(2, 2)}, count=1)
        >>> one, two = ((x, torch.tensor([y])) for x, y in zip(torch.eye(2).split(1), (0, 1)))
        >>> tuner = Tuner(unlearner=BinaryMask(), fractions=(0.25,), rounds=0)
        >>> data = Validation(retain=[two], forget=[one])
        >>> tuning = tuner.tune(model, forget=forget, reference=full, validation=data, target=1.0)
        >>> tuning.chosen.options, tuning.report.changed
        ({'lam': 1.0}, 1)
    """

    unlearner: ElementwiseUnlearner
    operating: str = option("", doc="the option that selects; left out, the monotone one that reaches most weights")
    strength: str | None = None
    fractions: tuple[float, ...] = attrs.field(default=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3), converter=_shares)
    strengths: tuple[float, ...] = attrs.field(default=(0.0, 0.3, 1.0), converter=_shares)
    reestimate: tuple[bool, ...] = (False, True)
    budget: float = option(0.02, at_least=0, at_most=1, doc="largest loss of retain accuracy on validation data")
    rounds: int = option(2, at_least=0, doc="how often to look closer around the best")
    promising: int = option(3, at_least=1, doc="how many combinations of strength and BatchNorm to look closer at")

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.unlearner, ElementwiseUnlearner):
            raise ConfigurationError(
                f"Tuner.unlearner: expected an object of an elementwise method, saw {self.unlearner!r}"
            )
        if not self.fractions or not all(0 < f <= 1 for f in self.fractions):
            raise ConfigurationError(f"Tuner.fractions: expected shares above 0 and up to 1, saw {self.fractions}")
        if not self.strengths or not all(s >= 0 for s in self.strengths):
            raise ConfigurationError(f"Tuner.strengths: expected numbers ≥ 0, saw {self.strengths}")
        if not self.reestimate:
            raise ConfigurationError("Tuner.reestimate: expected at least one of true and false, saw none")

    def tune(
        self,
        model: nn.Module,
        *,
        forget: Importance,
        reference: Importance | None,
        validation: Validation,
        target: float,
        target_source: str = "stated",
        retain_data: Iterable[Any] | None = None,
        objective: Objective | None = None,
        seed: int = 0,
        max_fraction: float | None = None,
        progress: Progress = silent,
    ) -> Tuning:
        """Search, and edit the model in place with what was found; or edit nothing.

        Args:
            model: The original.
            forget: Importance for the forget set, best without its validation samples.
            reference: Importance for the reference set, likewise.
            validation: What to judge by.
            target: The forget accuracy to aim at, 0 … 1: stated, or a retrained model's on the same samples, or the
                original's on samples of the same kind that it was never trained on.
            target_source: Which of these, for the record.
            retain_data: To re-estimate BatchNorm on; without it, it is not re-estimated.
            objective: How a batch becomes losses; `CrossEntropy`.
            seed: For methods that draw numbers.
            max_fraction: The largest fraction of weights that may change.
            progress: Shows a bar for each round.

        Returns:
            The chosen candidate and all others; without a choice the model is bit-identical to what it was.

        Raises:
            ConfigurationError: The target is no accuracy, or the method has no monotone option.
        """
        if not 0 <= target <= 1:
            raise ConfigurationError(f"Tuner.tune: expected a target accuracy from 0 to 1, saw {target!r}")
        start = time.perf_counter()
        curve = OperatingCurve.of(
            self.unlearner, model, forget=forget, reference=reference, option=self.operating, strength=self.strength
        )
        search = _Search(
            tuner=self,
            model=model,
            curve=curve,
            evidence=Evidence(
                forget=forget,
                reference=reference,
                retain_data=retain_data,
                objective=objective or CrossEntropy(),
                seed=seed,
                max_fraction=max_fraction,
            ),
            validation=validation,
            target=target,
            original=_Scores.of(model, validation, objective),
        )
        candidates = search.run(progress)
        chosen = max((c for c in candidates if c.feasible), key=lambda c: c.order, default=None)
        report = None if chosen is None else search.commit(chosen)
        return Tuning(
            target=target,
            target_source=target_source,
            budget=self.budget,
            original_retain=search.original.retain,
            original_forget=search.original.forget,
            candidates=tuple(candidates),
            chosen=chosen,
            report=report,
            seconds=time.perf_counter() - start,
        )


@final
@attrs.frozen(kw_only=True)
class _Scores:
    """Accuracy, and mean probability of the label, on retained and on forget data."""

    retain: float
    forget: float
    retain_probability: float
    forget_probability: float

    @classmethod
    def of(cls, model: nn.Module, validation: Validation, objective: Objective | None) -> "_Scores":
        try:
            retain, forget = (
                outputs_of(model, data, objective=objective) for data in (validation.retain, validation.forget)
            )
        except InapplicableError as reason:
            raise ConfigurationError(f"Tuner.tune: cannot judge by the validation data: {reason}") from reason
        return cls(
            retain=retain.accuracy,
            forget=forget.accuracy,
            retain_probability=retain.certainty,
            forget_probability=forget.certainty,
        )


@final
@attrs.frozen(kw_only=True, eq=False)
class _Search:
    tuner: Tuner
    model: nn.Module
    curve: OperatingCurve
    evidence: Evidence
    validation: Validation
    target: float
    original: _Scores

    def run(self, progress: Progress) -> list[Candidate]:
        found: dict[Setting, Candidate] = {}
        for number in range(self.tuner.rounds + 1):
            settings = list(self._grid() if number == 0 else self._closer(list(found.values()), number))
            new = [s for s in dict.fromkeys(settings) if s not in found]
            for setting in progress(new, f"tuning, round {number + 1} of {self.tuner.rounds + 1}", len(new)):
                found[setting] = self.measure(setting)
        return list(found.values())

    def measure(self, setting: Setting) -> Candidate:
        """Make an edit, score it, undo it."""
        seen: dict[str, Any] = {}

        def accept(report: Report) -> Never:
            self._finish(setting)
            seen["scores"] = _Scores.of(self.model, self.validation, self.evidence.objective)
            seen["changed"] = report.fraction
            raise _RollBackError

        method = self.method(setting)
        options = self._options(method)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnlearnKitWarning)  # said once, when the chosen edit is made
                method.unlearn(self.model, self.evidence, accept=accept)
        except _RollBackError:
            return self._candidate(setting, options, seen["scores"], changed=seen["changed"])
        except (BudgetError, NonFiniteError) as error:
            return Candidate(setting=setting, options=options, problem=str(error))
        raise AssertionError("accept() always raises")

    def commit(self, candidate: Candidate) -> Report:
        """Make the chosen edit for good."""
        before = {name: b.detach().clone() for name, b in buffers(self.model).items()}

        def accept(report: Report) -> Report:
            self._finish(candidate.setting)
            changed = [n for n, b in buffers(self.model).items() if not bool((b == before[n]).all())]
            return attrs.evolve(report, buffers_changed=tuple(changed), model_after=digest(self.model))

        return self.method(candidate.setting).unlearn(self.model, self.evidence, accept=accept)

    def method(self, setting: Setting) -> ElementwiseUnlearner:
        value = self.curve.value_for(setting.fraction)
        options = {self.curve.option: value}
        if setting.strength is not None:
            options[self.curve.strength] = setting.strength * value
        return with_options(self.tuner.unlearner, **options)

    def _finish(self, setting: Setting) -> None:
        if setting.reestimate:
            assert self.evidence.retain_data is not None, "no such setting is made without retain data"
            reestimate_batch_norm(self.model, self.evidence.retain_data, objective=self.evidence.objective)

    def _options(self, method: ElementwiseUnlearner) -> dict[str, Any]:
        names = (self.curve.option, self.curve.strength)
        return {name: getattr(method, name) for name in names if name}

    def _candidate(self, setting: Setting, options: dict[str, Any], seen: _Scores, *, changed: float) -> Candidate:
        distance, damage = abs(seen.forget - self.target), self.original.retain - seen.retain
        return Candidate(
            setting=setting,
            options=options,
            selected=self.curve.fraction(options[self.curve.option]),
            changed=changed,
            **attrs.asdict(seen),
            distance=distance,
            damage=damage,
            score=(1 - distance) * (1 - max(damage, 0.0)),
            margin=(1 - abs(seen.forget_probability - self.target)) * seen.retain_probability,
            # Accuracies are shares of samples: a budget of exactly so many is kept by exactly so many.
            feasible=damage <= self.tuner.budget + 1e-12,
        )

    def _grid(self) -> Iterator[Setting]:
        strengths = self.tuner.strengths if self.curve.strength else (None,)
        norm = self.evidence.retain_data is not None and has_batch_norm(self.model)
        for reestimate in dict.fromkeys(r and norm for r in self.tuner.reestimate):
            for strength in strengths:
                for fraction in self.tuner.fractions:
                    yield Setting(fraction=fraction, strength=strength, reestimate=reestimate)

    def _closer(self, found: list[Candidate], number: int) -> Iterator[Setting]:
        """Look at finer fractions around the best of each promising combination."""
        pool = [c for c in found if c.feasible] or found
        best: dict[tuple[float | None, bool], Candidate] = {}
        for c in sorted(pool, key=lambda c: c.order, reverse=True):
            best.setdefault((c.setting.strength, c.setting.reestimate), c)
        # Three times as fine in every round; steps of √10 where there is one fraction only.
        ends = sorted(self.tuner.fractions)
        step = (ends[-1] / ends[0]) ** (1 / (len(ends) - 1)) if len(ends) > 1 and ends[0] < ends[-1] else 10**0.5
        for c in list(best.values())[: self.tuner.promising]:
            for k in (-2, -1, 1, 2):
                fraction = min(1.0, c.setting.fraction * step ** (k / 3**number))
                yield attrs.evolve(c.setting, fraction=fraction)
