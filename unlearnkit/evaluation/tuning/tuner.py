"""The search for the right edit: coarse to fine over selected fraction, strength and BatchNorm re-estimation."""

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from math import sqrt
from typing import Any, Never, Self, final

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlearnkit.data.batches import feed
from unlearnkit.distributed.collectives import Shared, map_shared
from unlearnkit.evaluation.model_outputs import InapplicableError, mean, outputs_of
from unlearnkit.evaluation.tuning.result import Candidate, Setting, Tuning
from unlearnkit.importance.importance import Importance
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.parameters import buffers, device_of, digest, trainable
from unlearnkit.models.training import batch_norm_batches
from unlearnkit.unlearning.elementwise import ElementwiseUnlearner, RuleOperands
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.unlearner import UnlearningInputs
from unlearnkit.utils.errors import BudgetError, ConfigurationError, NonFiniteError, UnlearnKitWarning
from unlearnkit.utils.options import option, options_of
from unlearnkit.utils.progress import Progress, length, silent
from unlearnkit.utils.rng import private_rng

LOWEST, HIGHEST = 1e-30, 1e30  # values of an option that are tried
_STEPS = 60  # of bisection
_TOLERANCE = 0.01  # of the selected share, relative to the requested one


@final
@attrs.frozen(kw_only=True, eq=False)
class Validation:
    """Batches to choose a candidate by, iterable more than once: from the training set, never from the test set."""

    retain: Iterable[Any]
    forget: Iterable[Any]


def _shares(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


@final
@attrs.frozen(kw_only=True)
class Tuner:
    """Searches the options of an elementwise method, and makes the best edit within a budget.

    Each candidate costs one edit and one pass over the validation data (and one over retain data, where BatchNorm is
    re-estimated), and is undone bit by bit. The first round is a grid of fractions × strengths × BatchNorm; each
    further round tries finer fractions around the best of the most promising combinations. The best candidate has the
    largest (1 − |forget accuracy − target|)·(1 − loss of retain accuracy) among those within the budget of the latter;
    among equals, the largest `Candidate.margin`.

    Example:
        >>> from unlearnkit_methods.binary_mask import BinaryMask
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(model.weight)
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
    operating: str = option("", doc="the option that selects; by default the monotone one that reaches most weights")
    strength: str | None = None
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
        progress: Progress = silent,
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
            original=_scores(model, validation, objective),
            progress=progress,
        )
        candidates = self._search(trials, together=together)
        chosen = max((c for c in candidates if c.feasible), key=lambda c: c.order, default=None)
        return Tuning(
            target=target,
            target_source=target_source,
            budget=self.budget,
            original_retain=trials.original["retain"],
            original_forget=trials.original["forget"],
            candidates=tuple(candidates),
            chosen=chosen,
            report=None if chosen is None else trials.commit(chosen),
            seconds=time.perf_counter() - start,
        )

    def _search(self, trials: "_Trials", *, together: bool) -> list[Candidate]:
        found: dict[Setting, Candidate] = {}
        for number in range(self.rounds + 1):
            settings = self._grid(trials) if number == 0 else self._closer([*found.values()], number)
            new = [s for s in dict.fromkeys(settings) if s not in found]
            work = partial(trials.measure_all, what=f"tuning, round {number + 1} of {self.rounds + 1}")
            tried = map_shared(Shared(items=new) if together else new, work, model=trials.model)
            found.update(zip(new, tried, strict=True))
        return [*found.values()]

    def _grid(self, trials: "_Trials") -> Iterator[Setting]:
        strengths = self.strengths if trials.curve.strength else (None,)
        norm = trials.inputs.retain_data is not None and bool(batch_norm_layers(trials.model))
        for reestimate in dict.fromkeys(r and norm for r in self.reestimate):
            for strength in strengths:
                for fraction in self.fractions:
                    yield Setting(fraction=fraction, strength=strength, reestimate=reestimate)

    def _closer(self, found: list[Candidate], number: int) -> Iterator[Setting]:
        """Yield finer fractions around the best of each promising combination."""
        pool = [c for c in found if c.feasible] or found
        best: dict[tuple[float | None, bool], Candidate] = {}
        for c in sorted(pool, key=lambda c: c.order, reverse=True):
            best.setdefault((c.setting.strength, c.setting.reestimate), c)
        # Three times as fine in every round; steps of √10 where there is one fraction only.
        ends = sorted(self.fractions)
        step = (ends[-1] / ends[0]) ** (1 / (len(ends) - 1)) if len(ends) > 1 and ends[0] < ends[-1] else 10**0.5
        for c in list(best.values())[: self.promising]:
            for k in (-2, -1, 1, 2):
                fraction = min(1.0, c.setting.fraction * step ** (k / 3**number))
                yield attrs.evolve(c.setting, fraction=fraction)


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
        monotone = [o.name for o in options_of(unlearner) if o.name in unlearner.promises().monotone]
        for name in (option, strength):
            if name and name not in monotone:
                raise ConfigurationError(f"{unlearner.name}: expected a monotone option, {monotone}, saw {name!r}")
        if not monotone:
            raise ConfigurationError(
                f"{unlearner.name!r} declares no monotone option, so no selected fraction can be found. "
                "Declare its monotone options in its traits, or tune another method"
            )
        weights = {name: p.detach().clone() for name, p in trainable(model).items()}
        curve = partial(cls, weights=weights, forget=forget, reference=reference)
        if not option:
            curves = (curve(unlearner=unlearner, option=name, strength="") for name in monotone)
            option = max(curves, key=lambda c: c.fraction(_lowest(unlearner, c.option))).option
        if strength is None:
            strength = next((name for name in monotone if name != option), "")
        if strength:
            unlearner = with_options(unlearner, **{strength: _lowest(unlearner, strength)})
        return curve(unlearner=unlearner, option=option, strength=strength)

    def fraction(self, value: float) -> float:
        """The selected fraction at a value of the option."""
        if value not in self._counted:
            method = with_options(self.unlearner, **{self.option: value}).prepare(self.forget, self.reference)
            operands = (RuleOperands.of(name, w, self.forget, self.reference) for name, w in self.weights.items())
            changed = sum(map(method.applier().count, operands))
            self._counted[value] = changed / sum(w.numel() for w in self.weights.values())
        return self._counted[value]

    def value_for(self, fraction: float) -> float:
        """Find the value that selects a share of weights, within 1 %, by bisection on its logarithm."""
        option = next(o for o in options_of(self.unlearner) if o.name == self.option)
        high = min((bound for sign, bound in option.bounds if sign == "≤"), default=HIGHEST)
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


def with_options(unlearner: ElementwiseUnlearner, **options: float) -> ElementwiseUnlearner:
    """A copy of a method with other options."""
    method: Any = unlearner
    changed: ElementwiseUnlearner = attrs.evolve(method, **options)
    return changed


def _lowest(unlearner: ElementwiseUnlearner, name: str) -> float:
    bounds = next(o for o in options_of(unlearner) if o.name == name).bounds
    return max((bound if sign == "≥" else max(bound, LOWEST) for sign, bound in bounds if sign != "≤"), default=LOWEST)


class _RollBackError(Exception):
    """Raised inside an edit after it was scored, to roll it back."""


def _scores(model: nn.Module, validation: Validation, objective: Objective | None) -> dict[str, float]:
    """Measure accuracy and mean probability of the label, each 0 … 1, on both parts of the validation data."""
    found: dict[str, float] = {}
    try:
        for name, data in (("retain", validation.retain), ("forget", validation.forget)):
            outputs = outputs_of(model, data, objective=objective)
            found |= {name: outputs.accuracy, f"{name}_probability": mean(outputs.confidences)}
    except InapplicableError as reason:
        raise ConfigurationError(f"Tuner.tune: cannot judge by the validation data: {reason}") from reason
    return found


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
            seen.update(_scores(self.model, self.validation, self.inputs.objective), changed=report.fraction)
            raise _RollBackError

        method = self._method(setting)
        options = {name: getattr(method, name) for name in (self.curve.option, self.curve.strength) if name}
        try:
            with warnings.catch_warnings(), suppress(_RollBackError):
                warnings.simplefilter("ignore", UnlearnKitWarning)  # raised once, for the chosen edit
                method.unlearn(self.model, self.inputs, accept=accept)
        except (BudgetError, NonFiniteError) as error:
            return Candidate(setting=setting, options=options, problem=str(error))
        distance, damage = abs(seen["forget"] - self.target), self.original["retain"] - seen["retain"]
        return Candidate(
            setting=setting,
            options=options,
            selected=self.curve.fraction(options[self.curve.option]),
            distance=distance,
            damage=damage,
            score=(1 - distance) * (1 - max(damage, 0.0)),
            margin=(1 - abs(seen["forget_probability"] - self.target)) * seen["retain_probability"],
            # Damage of exactly the budget is allowed, in spite of rounding.
            feasible=damage <= self.tuner.budget + 1e-12,
            **seen,
        )

    def commit(self, candidate: Candidate) -> Report:
        """Make the chosen edit and keep it."""
        before = {name: b.detach().clone() for name, b in buffers(self.model).items()}

        def accept(report: Report) -> Report:
            self._finish(candidate.setting)
            changed = [n for n, b in buffers(self.model).items() if not bool((b == before[n]).all())]
            return attrs.evolve(report, buffers_changed=tuple(changed), model_after=digest(self.model))

        return self._method(candidate.setting).unlearn(self.model, self.inputs, accept=accept)

    def _method(self, setting: Setting) -> ElementwiseUnlearner:
        value = self.curve.value_for(setting.fraction)
        options = {self.curve.option: value}
        if setting.strength is not None:
            options[self.curve.strength] = setting.strength * value
        return with_options(self.tuner.unlearner, **options)

    def _finish(self, setting: Setting) -> None:
        if setting.reestimate:
            assert self.inputs.retain_data is not None, "no such setting is made without retain data"
            reestimate_batch_norm(self.model, self.inputs.retain_data, objective=self.inputs.objective)


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any], *, objective: Objective | None = None) -> None:
    """Set the running statistics of each BatchNorm to the average over batches (Izmailov et al. 2018), in place."""
    layers, objective = batch_norm_layers(model), objective or CrossEntropy()
    momenta = [layer.momentum for layer in layers]
    modes = {module: module.training for module in model.modules()}
    seen = False
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # what torch calls a cumulative average
        with torch.no_grad(), private_rng(device_of(model)), batch_norm_batches(model) as usable:
            for _, moved in feed(usable(batches), device_of(model)):
                seen = True
                objective.losses(model, moved)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if layers and not seen:
        raise ConfigurationError("expected at least one batch of retain data to re-estimate BatchNorm on, saw none")


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """BatchNorm layers that track running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
