"""The search for the right edit: coarse to fine over selected fraction, strength and BatchNorm re-estimation."""

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from math import sqrt
from typing import Any, Never, Self, final

import attrs
from torch import Tensor, nn

from unlearnkit.distributed.collectives import Shared, map_shared
from unlearnkit.evaluation.model_outputs import InapplicableError, mean, outputs_of, sampling_error
from unlearnkit.evaluation.tuning.result import Candidate, Setting, Tuning
from unlearnkit.importance.importance import Importance
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.parameters import buffers, digest, trainable
from unlearnkit.models.training import batch_norm_layers, reestimate_batch_norm
from unlearnkit.unlearning.elementwise import ElementwiseUnlearner, RuleOperands
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.unlearner import Unlearner, UnlearningInputs
from unlearnkit.utils.errors import BudgetError, ConfigurationError, NonFiniteError, UnlearnKitWarning
from unlearnkit.utils.options import option, options_of, with_options
from unlearnkit.utils.progress import Progress, length, progress_of

LOWEST, HIGHEST = 1e-30, 1e30  # values of an option that are tried
_STEPS = 60  # of bisection
_MOST_TOLERANCE = 0.1  # of the forget accuracy, however few the validation samples
_TOLERANCE = 0.01  # of the selected share, relative to the requested one


@final
@attrs.frozen(kw_only=True, eq=False)
class Validation:
    """Batches to choose a candidate by, iterable more than once: from the training set, never from the test set."""

    retain: Iterable[Any]
    forget: Iterable[Any]


def _shares(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _by_threshold(unlearner: Any) -> Any:
    # A fraction that a method takes in place of its threshold would overrule the thresholds that are tried.
    given = {o.name: o for o in options_of(unlearner)}.get("fraction") if isinstance(unlearner, Unlearner) else None
    optional = given is not None and given.default is None and not given.required
    return attrs.evolve(unlearner, fraction=None) if optional else unlearner


@final
@attrs.frozen(kw_only=True)
class Tuner:
    """Searches the options of an elementwise method, and makes the best edit within a budget.

    Each candidate costs one edit and one pass over the validation data (and one over retain data, where BatchNorm is
    re-estimated), and is undone bit by bit. The first round is a grid of fractions × strengths × BatchNorm; each
    further round tries finer fractions around the best of the most promising combinations. The best candidate has the
    largest (1 − |forget accuracy − target|)·(1 − loss of retain accuracy) among those within the budget of the latter;
    among equals, the largest `Candidate.margin`. If none is better than the original by that score, nothing is edited.
    A strength that is named in ``fixed`` stays as it is.

    Examples:
        >>> import torch
        >>> from unlearnkit_methods.binary_mask import BinaryMask
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(model.weight)
        >>> forget = Importance(totals={"weight": torch.tensor([[1.0, 0.0], [0.0, 9.0]])}, count=1)
        >>> full = Importance(totals={"weight": torch.ones(2, 2)}, count=1)
        >>> one, two = ((x, torch.tensor([y])) for x, y in zip(torch.eye(2).split(1), (0, 1)))
        >>> tuner = Tuner(unlearner=BinaryMask(), fractions=(0.25,), rounds=0)
        >>> data = Validation(retain=[one], forget=[two])
        >>> tuning = tuner.tune(model, forget=forget, reference=full, validation=data, target=0.0)
        >>> tuning.chosen.options, tuning.report.changed
        ({'lam': 1.0}, 1)
    """

    unlearner: ElementwiseUnlearner = attrs.field(converter=_by_threshold)
    operating: str = option("", doc="the option that selects; by default the monotone one that reaches most weights")
    strength: str | None = None
    fixed: frozenset[str] = frozenset()
    fractions: tuple[float, ...] = attrs.field(default=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3), converter=_shares)
    strengths: tuple[float, ...] = attrs.field(default=(0.0, 0.3, 1.0), converter=_shares)
    reestimate: tuple[bool, ...] = (False, True)
    budget: float = option(0.02, at_least=0, at_most=1, doc="largest loss of retain accuracy on validation data")
    rounds: int = option(2, at_least=0, doc="rounds of finer search around the best")
    promising: int = option(3, at_least=1, doc="how many combinations of strength and BatchNorm to refine")

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.unlearner, ElementwiseUnlearner):
            raise ConfigurationError(
                f"Tuner.unlearner: expected an object of an elementwise method, saw {self.unlearner!r}"
            )
        monotone = _monotone(self.unlearner)
        if not monotone:
            raise ConfigurationError(
                f"{self.unlearner.name!r} declares no monotone option, so no selected fraction can be found. "
                "Declare its monotone options in its traits, or tune another method"
            )
        for field in ("operating", "strength"):
            name = getattr(self, field)
            if name and name not in monotone:
                raise ConfigurationError(
                    f"Tuner.{field}: expected a monotone option of {self.unlearner.name}, {monotone}, saw {name!r}"
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
        together: bool = False,
        progress: Progress | bool = True,
    ) -> Tuning:
        """Search, and edit the original model in place with the best candidate; or leave it bit-identical.

        The importances are preferably measured without the validation samples. ``target`` is the forget accuracy to aim
        at, 0 … 1, and ``target_source`` says what it is: stated, a retrained model's on the same samples, or the
        original's on samples of the same kind that it was never trained on. BatchNorm is re-estimated on
        ``retain_data`` only. With ``together``, all processes of torch.distributed call this with the same arguments:
        they split the candidates of a round, and each makes the edit.
        """
        if not 0 <= target <= 1:
            raise ConfigurationError(f"Tuner.tune: expected a target accuracy from 0 to 1, saw {target!r}")
        start, objective = time.perf_counter(), objective or CrossEntropy()
        inputs = UnlearningInputs(
            forget=forget,
            reference=reference,
            retain_data=retain_data,
            objective=objective,
            seed=seed,
            max_fraction=max_fraction,
        )
        curve = OperatingCurve.of(
            self.unlearner, model, forget=forget, reference=reference, option=self.operating, strength=self.strength
        )
        trials = _Trials(
            tuner=self,
            model=model,
            curve=curve,
            inputs=inputs,
            validation=validation,
            target=target,
            original=scores_of(model, validation, objective),
            progress=progress_of(progress),
        )
        found = Tuning(
            target=target,
            target_source=target_source,
            budget=self.budget,
            original_retain=trials.original["retain"],
            original_forget=trials.original["forget"],
            tolerance=tolerance_of(target, trials.original),
            candidates=tuple(self._search(trials, together=together)),
        )
        chosen = found.best
        report = None if chosen is None else trials.commit(chosen)
        return attrs.evolve(found, chosen=chosen, report=report, seconds=time.perf_counter() - start)

    def _search(self, trials: "_Trials", *, together: bool) -> list[Candidate]:
        found: dict[Setting, Candidate] = {}
        for number in range(self.rounds + 1):
            settings = self._grid(trials) if number == 0 else self._closer(found, number)
            new = [s for s in dict.fromkeys(settings) if s not in found]
            work = partial(trials.measure_all, what=f"tuning, round {number + 1} of {self.rounds + 1}")
            tried = map_shared(Shared(items=new) if together else new, work, model=trials.model)
            found.update(zip(new, tried, strict=True))
        return [*found.values()]

    def _grid(self, trials: "_Trials") -> Iterator[Setting]:
        varied = trials.curve.strength and trials.curve.strength not in self.fixed
        strengths = self.strengths if varied else (None,)
        norm = trials.inputs.retain_data is not None and bool(batch_norm_layers(trials.model))
        for reestimate in dict.fromkeys(r and norm for r in self.reestimate):
            for strength in strengths:
                for fraction in self.fractions:
                    yield Setting(fraction=fraction, strength=strength, reestimate=reestimate)

    def _closer(self, found: Mapping[Setting, Candidate], number: int) -> Iterator[Setting]:
        """Yield finer fractions around the best of each promising combination."""
        pool = [s for s, c in found.items() if c.feasible] or [*found]
        best: dict[tuple[float | None, bool], Setting] = {}
        for setting in sorted(pool, key=lambda s: found[s].order, reverse=True):
            best.setdefault((setting.strength, setting.reestimate), setting)
        # Three times as fine in every round; steps of √10 where there is one fraction only.
        ends = sorted(self.fractions)
        step = (ends[-1] / ends[0]) ** (1 / (len(ends) - 1)) if len(ends) > 1 and ends[0] < ends[-1] else 10**0.5
        for setting in list(best.values())[: self.promising]:
            for k in (-2, -1, 1, 2):
                yield attrs.evolve(setting, fraction=min(1.0, setting.fraction * step ** (k / 3**number)))


@final
@attrs.frozen(kw_only=True, eq=False)
class OperatingCurve:
    """The share of trainable weights that an edit changes, with λ at its lowest, as a function of a monotone option."""

    unlearner: ElementwiseUnlearner
    option: str
    strength: str
    weights: dict[str, Tensor] = attrs.field(repr=False)
    forget: Importance
    reference: Importance | None
    _counted: dict[float, float] = attrs.field(factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        unlearner: ElementwiseUnlearner,
        model: nn.Module,
        *,
        forget: Importance,
        reference: Importance | None,
        option: str = "",
        strength: str | None = None,
    ) -> Self:
        """Choose the options that were not given (``""`` is no strength), and copy the weights."""
        monotone = _monotone(unlearner)
        weights = {name: p.detach().clone() for name, p in trainable(model).items()}
        curve = partial(cls, weights=weights, forget=forget, reference=reference)
        if not option:
            curves = (curve(unlearner=unlearner, option=name, strength="") for name in monotone)
            option = max(curves, key=lambda c: c.fraction(_lowest(unlearner, c.option))).option
        if strength is None:
            strength = next((name for name in monotone if name != option), "")
        if strength:
            unlearner = with_options(unlearner, {strength: _lowest(unlearner, strength)})
        return curve(unlearner=unlearner, option=option, strength=strength)

    def fraction(self, value: float) -> float:
        """The selected fraction at a value of the option."""
        if value not in self._counted:
            method = with_options(self.unlearner, {self.option: value}).prepare(self.forget, self.reference)
            operands = (RuleOperands.of(name, w, self.forget, self.reference) for name, w in self.weights.items())
            changed = sum(map(method.applier().count, operands))
            self._counted[value] = changed / sum(w.numel() for w in self.weights.values())
        return self._counted[value]

    def value_for(self, fraction: float) -> float:
        """Find the value that selects a share of weights, within 1 %, by bisection on its logarithm."""
        high = _highest(self.unlearner, self.option)
        low = max(_lowest(self.unlearner, self.option), LOWEST)
        if self.fraction(low) <= fraction:
            return low
        for _ in range(_STEPS):
            middle = sqrt(low) * sqrt(high)
            found = self.fraction(middle)
            if abs(found - fraction) <= _TOLERANCE * fraction:
                return middle
            low, high = (middle, high) if found > fraction else (low, middle)
        return high


def _monotone(unlearner: ElementwiseUnlearner) -> list[str]:
    return [o.name for o in options_of(unlearner) if o.name in unlearner.promises().monotone]


def _highest(unlearner: ElementwiseUnlearner, name: str) -> float:
    bounds = next(o for o in options_of(unlearner) if o.name == name).bounds
    return min((bound for sign, bound in bounds if sign == "≤"), default=HIGHEST)


def _lowest(unlearner: ElementwiseUnlearner, name: str) -> float:
    bounds = next(o for o in options_of(unlearner) if o.name == name).bounds
    return max((bound if sign == "≥" else max(bound, LOWEST) for sign, bound in bounds if sign != "≤"), default=LOWEST)


class RollBackError(Exception):
    """Raised inside an edit after it was scored, to roll it back."""


def scores_of(model: nn.Module, validation: Validation, objective: Objective | None) -> dict[str, float]:
    """Measure accuracy and mean probability of the label, each 0 … 1, on both parts of the validation data."""
    found: dict[str, float] = {}
    try:
        for name, data in (("retain", validation.retain), ("forget", validation.forget)):
            outputs = outputs_of(model, data, objective=objective)
            found |= {name: outputs.accuracy, f"{name}_probability": mean(outputs.confidences), "samples": len(outputs)}
    except InapplicableError as reason:
        raise ConfigurationError(f"Tuner.tune: cannot judge by the validation data: {reason}") from reason
    return found


def judged(
    seen: Mapping[str, Any],
    *,
    target: float,
    original: Mapping[str, float],
    budget: float,
    gap: float = 0.0,
    **fields: Any,
) -> Candidate:
    """Compare the scores of an edit with the target and with those of the original; ``fields`` are of `Candidate`."""
    distance, damage = abs(seen["forget"] - target), original["retain"] - seen["retain"]
    return Candidate(
        distance=distance,
        damage=damage,
        gap=gap,
        score=(1 - distance) * (1 - max(damage, 0.0)) * (1 - gap),
        margin=(1 - abs(seen["forget_probability"] - target)) * seen["retain_probability"],
        feasible=damage <= budget + 1e-12,  # damage of exactly the budget is allowed, in spite of rounding
        **{name: value for name, value in seen.items() if name != "samples"},
        **fields,
    )


def tolerance_of(target: float, original: Mapping[str, float]) -> float:
    """Return how near to the target counts as reached: the sampling error of the validation samples, at most 0.1."""
    return min(_MOST_TOLERANCE, sampling_error(target, int(original["samples"])))


@final
@attrs.frozen(kw_only=True, eq=False)
class _Trials:
    """Makes and scores the candidates of one search."""

    tuner: Tuner
    model: nn.Module
    curve: OperatingCurve
    inputs: UnlearningInputs
    validation: Validation
    target: float
    original: dict[str, float]
    progress: Progress

    def measure_all(self, own: Iterable[Setting], _: Iterator[int], *, what: str) -> Iterator[Candidate]:
        return map(self.measure, self.progress(own, what, length(own)))

    def measure(self, setting: Setting) -> Candidate:
        """Make an edit, score it, undo it."""
        seen: dict[str, Any] = {}

        def accept(report: Report) -> Never:
            self._finish(setting)
            seen.update(scores_of(self.model, self.validation, self.inputs.objective), changed=report.fraction)
            raise RollBackError

        method = self._method(setting)
        options = {name: getattr(method, name) for name in (self.curve.option, self.curve.strength) if name}
        try:
            with warnings.catch_warnings(), suppress(RollBackError):
                warnings.simplefilter("ignore", UnlearnKitWarning)  # raised once, for the chosen edit
                method.unlearn(self.model, self.inputs, accept=accept)
        except (BudgetError, NonFiniteError) as error:
            return Candidate(setting=setting, options=options, problem=str(error))
        selected = self.curve.fraction(options[self.curve.option])
        return judged(
            seen,
            target=self.target,
            original=self.original,
            budget=self.tuner.budget,
            setting=setting,
            options=options,
            selected=selected,
        )

    def commit(self, candidate: Candidate) -> Report:
        """Make the chosen edit and keep it."""
        setting, before = candidate.setting, {name: b.detach().clone() for name, b in buffers(self.model).items()}
        assert setting is not None, "each of this search has one"

        def accept(report: Report) -> Report:
            self._finish(setting)
            changed = [n for n, b in buffers(self.model).items() if not bool((b == before[n]).all())]
            return attrs.evolve(report, buffers_changed=tuple(changed), model_after=digest(self.model))

        return self._method(setting).unlearn(self.model, self.inputs, accept=accept)

    def _method(self, setting: Setting) -> ElementwiseUnlearner:
        value = self.curve.value_for(setting.fraction)
        options = {self.curve.option: value}
        if setting.strength is not None:
            name, multiple = self.curve.strength, setting.strength * value
            ends = (_lowest(self.tuner.unlearner, name), _highest(self.tuner.unlearner, name))
            options[name] = min(max(multiple, ends[0]), ends[1])
        return with_options(self.tuner.unlearner, options)

    def _finish(self, setting: Setting) -> None:
        if setting.reestimate:
            assert self.inputs.retain_data is not None, "no such setting is made without retain data"
            reestimate_batch_norm(self.model, self.inputs.retain_data, objective=self.inputs.objective)
