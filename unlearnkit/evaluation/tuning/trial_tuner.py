"""The search for the options of any method that declares ranges, by Optuna: each trial is a whole edit."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Never, final

import attrs
from scipy.stats.qmc import Halton
from torch import nn

from unlearnkit.data.loaders import Paired
from unlearnkit.evaluation.tuning.result import Candidate, Tuning
from unlearnkit.evaluation.tuning.tuner import RollBackError, Validation, judged, scores_of, tolerance_of
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.unlearner import Unlearner, UnlearningInputs
from unlearnkit.utils.errors import BudgetError, ConfigurationError, NonFiniteError, UnlearnKitWarning, nearest
from unlearnkit.utils.options import Option, name_set, nested_options, option, with_options
from unlearnkit.utils.progress import Progress, progress_of
from unlearnkit.utils.structuring import structure

if TYPE_CHECKING:
    import optuna

_LOG = 10  # a range whose ends are so many times apart is searched by its logarithm
_SPREAD = 10  # trials before TPE begins
_CANDIDATE = "candidate"  # key of a trial's attributes


@final
@attrs.frozen(kw_only=True)
class TrialTuner:
    """Searches the options that declare a range (``option(search=…)``), and makes the best edit within a budget.

    A trial edits the model, is scored on the validation data as the candidates of `Tuner` are, and is undone. The first
    one has the options of ``unlearner``, the next nine are spread over the ranges by a Halton sequence, those after
    them are proposed by Optuna's TPE. With ``prune``, one that is worse after a pass over its data than the median of
    those before is stopped. Options named in ``fixed`` stay as they are, and ``ranges`` replaces or adds ranges by the
    names of options. All steps of a sequence are searched as one: their options are named ``"ssd.fraction"``.

    Source: Akiba et al. 2019 (Optuna); Bergstra et al. 2011 (TPE); Halton 1964, for the first trials.
    """

    unlearner: Unlearner
    fixed: frozenset[str] = attrs.field(default=frozenset(), converter=name_set)
    ranges: Mapping[str, tuple[float, float]] = attrs.field(factory=dict)
    trials: int = option(20, at_least=1, doc="edits to try")
    budget: float = option(0.02, at_least=0, at_most=1, doc="largest loss of retain accuracy on validation data")
    most_steps: int | None = None  # batches that an edit may go through
    prune: bool = True
    storage: str = option("", doc="database URL of the trials, as sqlite:///trials.sqlite, to go on after a stop")
    study: str = option("", doc="name of the search in the storage")

    def tune(
        self,
        model: nn.Module,
        inputs: UnlearningInputs,
        *,
        validation: Validation,
        target: float,
        target_source: str = "stated",
        gap: Callable[[nn.Module], float] | None = None,
        progress: Progress | bool = True,
    ) -> Tuning:
        """Search, and edit the model in place with the best candidate; or leave it bit-identical.

        ``inputs`` holds what the method needs, without the validation samples; ``inputs.seed`` is that of each edit and
        of the search. ``target`` is the forget accuracy to aim at, 0 … 1; ``gap`` measures how far a model is from a
        further aim, 0 … 1.
        """
        import optuna  # noqa: PLC0415 - of the extra "tune"

        if not 0 <= target <= 1:
            raise ConfigurationError(f"TrialTuner.tune: expected a target accuracy from 0 to 1, saw {target!r}")
        start, searched = time.perf_counter(), self.searched()
        original = scores_of(model, validation, inputs.objective)
        original_gap = 0.0 if gap is None else gap(model)

        def compare(model: nn.Module, **fields: Any) -> Candidate:
            seen = scores_of(model, validation, inputs.objective)
            return judged(seen, target=target, original=original, budget=self.budget, **fields)

        def attempt(trial: optuna.Trial) -> float:
            options = {o.name: _suggest(trial, o) for o in searched}
            if (repeated := _repeated(study, trial)) is not None:
                return repeated
            made: list[Candidate] = []
            counted = _Steps(progress=inputs.progress, most=self.most_steps)

            def after_pass(model: nn.Module, number: int) -> None:
                seen = compare(model, options=options, steps=counted.taken)
                trial.report(_value(seen), number)
                if trial.should_prune():
                    why = f"stopped after pass {number}: below the median"
                    made[:] = [attrs.evolve(seen, feasible=False, problem=why)]
                    raise optuna.TrialPruned

            def accept(report: Report) -> Never:
                further = 0.0 if gap is None else gap(model)
                fields = {"options": options, "changed": report.fraction, "steps": counted.taken}
                made.append(compare(model, gap=further, **fields))
                raise RollBackError

            method = with_options(self.unlearner, options)
            try:
                with warnings.catch_warnings(), suppress(RollBackError):
                    warnings.simplefilter("ignore", UnlearnKitWarning)  # raised once, for the chosen edit
                    method.unlearn(model, attrs.evolve(inputs, after_pass=after_pass, progress=counted), accept=accept)
            except (BudgetError, NonFiniteError) as error:
                made[:] = [Candidate(options=options, steps=counted.taken, problem=str(error))]
            finally:
                if made:
                    trial.set_user_attr(_CANDIDATE, attrs.asdict(made[0]))
            return _value(made[0])

        with _quiet(optuna), opened_storage(self.storage) as storage:
            study = optuna.create_study(
                storage=storage,
                study_name=self.study or None,
                load_if_exists=True,
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5) if self.prune else optuna.pruners.NopPruner(),
            )
            _end_interrupted(study)
            done = [trial for trial in study.trials if _CANDIDATE in trial.user_attrs]
            left = range(len(done), max(self.trials, len(done)))
            for number in progress_of(progress)(left, f"tuning {self.unlearner.name}", len(left)):
                if number < _SPREAD and not study.get_trials(states=[optuna.trial.TrialState.WAITING]):
                    study.enqueue_trial(self._first(searched, number))
                study.sampler = optuna.samplers.TPESampler(seed=inputs.seed + number, constant_liar=False)
                study.optimize(attempt, n_trials=1)
            # An earlier search may have made more.
            tried = [t.user_attrs[_CANDIDATE] for t in study.trials if _CANDIDATE in t.user_attrs][: self.trials]
        found = Tuning(
            target=target,
            target_source=target_source,
            budget=self.budget,
            original_retain=original["retain"],
            original_forget=original["forget"],
            original_gap=original_gap,
            tolerance=tolerance_of(target, original),
            candidates=tuple(structure(one, Candidate, where="a trial in the storage") for one in tried),
        )
        chosen = found.best
        report = None if chosen is None else with_options(self.unlearner, chosen.options).unlearn(model, inputs)
        return attrs.evolve(found, chosen=chosen, report=report, seconds=time.perf_counter() - start)

    def _first(self, searched: list[Option], number: int) -> dict[str, Any]:
        """Return the options of one of the first trials: those of the unlearner, then points spread over the ranges."""
        if number == 0:
            names = {o.name for o in searched}
            return {o.name: v for o, v in nested_options(self.unlearner) if o.name in names and v is not None}
        (point,) = Halton(len(searched), scramble=False).fast_forward(number).random()
        return {known.name: _value_at(known, float(u)) for known, u in zip(searched, point, strict=True)}

    def searched(self) -> list[Option]:
        """List the options to search; a `ConfigurationError` where there are none."""
        known = {o.name: o for o, _ in nested_options(self.unlearner)}
        unknown = sorted(self.ranges.keys() - known.keys())
        if unknown:
            raise ConfigurationError(
                f"TrialTuner.ranges: {self.unlearner.name!r} has no option {unknown[0]!r}{nearest(unknown[0], known)}"
            )
        replaced = {known[name].replaces for name in self.fixed if name in known}
        ranged = [attrs.evolve(o, search=self.ranges.get(name, o.search)) for name, o in known.items()]
        free = [o for o in ranged if not self.fixed & {o.name, o.replaces} and o.name not in replaced]
        found = [o for o in free if o.search is not None]
        if not found:
            raise ConfigurationError(
                f"{self.unlearner.name!r}: expected an option to search, saw none that is not fixed: authors declare "
                "ranges by option(…, search=(low, high))"
            )
        return found


def _repeated(study: "optuna.Study", trial: "optuna.Trial") -> float | None:
    """Return the value of an earlier trial of the same options, which are not tried again."""
    for same in study.trials:
        if same.params == trial.params and _CANDIDATE in same.user_attrs and same.value is not None:
            trial.set_user_attr(_CANDIDATE, {**same.user_attrs[_CANDIDATE], "steps": 0})
            return same.value
    return None


@final
@attrs.define
class _Steps:
    """Counts the batches of the passes that an edit shows, and stops it after too many."""

    progress: Progress
    most: int | None
    taken: int = 0

    def __call__(self, items: Iterable[Any], what: str, total: int | None) -> Iterator[Any]:
        each = 2 if isinstance(items, Paired) else 1
        for item in self.progress(items, what, total):
            if self.most is not None and self.taken + each > self.most:
                raise BudgetError(
                    f"expected an edit of at most {self.most} batches, saw more: choose fewer epochs, and declare "
                    "batches_per_step = 2 where a step of the method takes a batch of each set"
                )
            self.taken += each
            yield item


def _suggest(trial: Any, known: Option) -> float:
    low, high, log = _range(known)
    draw = trial.suggest_int if known.kind is int else trial.suggest_float
    found: float = draw(known.name, known.kind(low), known.kind(high), log=log)
    return found


def _value_at(known: Option, share: float) -> float:
    """Return the value of an option at a share of its range, 0 < share < 1."""
    low, high, log = _range(known)
    if known.kind is int:
        high += 1
    found = low * (high / low) ** share if log else low + share * (high - low)
    return int(found) if known.kind is int else found


def _range(known: Option) -> tuple[float, float, bool]:
    """Return the ends of an option's range, and whether its logarithm is searched."""
    assert known.search is not None, "only such options are searched"
    low, high = known.search
    return low, high, low > 0 and high >= _LOG * low


def _value(candidate: Candidate) -> float:
    """Return what Optuna maximises: the score, less 1 outside the budget; −1 where there was no edit."""
    if candidate.problem:
        return -1.0
    return candidate.score - (not candidate.feasible)


def _end_interrupted(study: "optuna.Study") -> None:
    """End the trials that a kill left running, which the sampler would take for bad ones."""
    from optuna.trial import TrialState  # noqa: PLC0415 - of the extra "tune"

    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)


@contextmanager
def opened_storage(url: str) -> Iterator["optuna.storages.RDBStorage | None"]:
    """Open the database of the trials, and close its connections at the end."""
    import optuna  # noqa: PLC0415 - of the extra "tune"

    storage = optuna.storages.RDBStorage(url) if url else None
    try:
        yield storage
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Keep Optuna's own lines off the terminal."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
