"""Deletion requests: from sample numbers to an edited model, a smaller store of importances and a receipt."""

import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, final

import attrs
import numpy as np
from torch import Tensor, nn

from unlearnkit.data import LabelledImages
from unlearnkit.deletion.ledger import Ledger
from unlearnkit.deletion.requests import Population, Request, Rows
from unlearnkit.deletion.samples import Samples, sample_name
from unlearnkit.deletion.state import KeptModel, Outcome, Pending, Receipt, State, write_state
from unlearnkit.experiments.config import Config
from unlearnkit.experiments.experiment import Experiment, chosen_method, make_unlearner
from unlearnkit.experiments.provenance import versions
from unlearnkit.importance import Importance, ImportanceStore, Role, fill
from unlearnkit.importance.estimator import fingerprint_of
from unlearnkit.importance.importance import counts_of_difference, counts_of_sum
from unlearnkit.importance.store.files import Edit, difference, on_disk, summed
from unlearnkit.models import model_state
from unlearnkit.models.parameters import digest, parameters
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.unlearning import Report
from unlearnkit.unlearning.patch import TensorPatch
from unlearnkit.utils.errors import BudgetError, ConfigurationError, StoreError, UnlearnKitError, nearest, raise_all
from unlearnkit.utils.memory import MIB, peak_memory
from unlearnkit.utils.options import several
from unlearnkit.utils.progress import Progress, silent

Scores = dict[str, dict[str, float | int | None]]
Decision = tuple[State, Pending, Iterable[tuple[str, Importance]]]
"""A new state, what is to be done, and importances to take out of the store."""


@final
@attrs.frozen(kw_only=True, eq=False)
class Deletion:
    """Deletion requests on the model of a configuration."""

    experiment: Experiment
    ledger: Ledger
    plugins: PluginManager
    progress: Progress = silent

    @classmethod
    def load(
        cls,
        config: Config,
        *,
        plugins: PluginManager | None = None,
        progress: Progress = silent,
        told: Callable[[Receipt], None] | None = None,
    ) -> "Deletion":
        """Load the data and find the ledger, without changing anything; the section ``[forget]`` is ignored.

        ``told`` is called with each receipt; see `Ledger`.
        """
        plugins = plugins or default_manager()
        method = chosen_method(config, config.deletion.method, key="deletion.method")
        if method.tuned:
            raise ConfigurationError(f"method {method.label!r}: expected fixed options for a ledger, saw tuned")
        if config.importance.reference_samples:
            raise ConfigurationError(
                "importance.reference_samples: expected 0 for a ledger, which keeps importances of all samples, saw "
                f"{config.importance.reference_samples}"
            )
        make_unlearner(method, plugins)
        experiment = Experiment.load(attrs.evolve(config, forget=type(config.forget)()))
        estimator = experiment.estimator(plugins)
        if estimator.traits.unit != "sample":
            raise ConfigurationError(
                "importance.estimator: expected one term per sample for a ledger, which keeps the importances of "
                f"groups, saw {estimator.name!r}: one per batch"
            )
        return cls(
            experiment=experiment,
            ledger=find_ledger(config, told=told),
            plugins=plugins,
            progress=progress,
        )

    def start(self) -> Receipt:
        """Start the ledger, or continue after a kill: measure the importances of every group on the original model."""
        begun = (self.ledger.folder / "ledger.json").exists()
        if not begun:
            self._population(forgotten=())  # refuses groups that do not exist before anything is written
            original, _ = self.experiment.original_model()
            self.ledger.start(original, samples=self._samples, receipt=partial(self.receipt, outcome="started"))
        with self.ledger.locked():  # which writes the first receipt, where a kill came before it
            if begun:
                self._check_original()
            state, _ = self.ledger.state, self.population()
            if state.measured:
                self._check_settings()
            else:
                self._fill(state.store, state.current)
                write_state(self.ledger.folder, attrs.evolve(state, measured=True))
            return self.ledger.receipts()[0]

    def _check_original(self) -> None:
        checkpoint = self.experiment.config.model.checkpoint
        known = {receipt.model_after for receipt in self.ledger.receipts()}
        if Path(checkpoint).exists() and (seen := digest(self.experiment.original_model()[0])) not in known:
            raise StoreError(
                f"{self.ledger.folder} is the ledger of another model: expected "
                f"{self.ledger.receipts()[0].model_after}, saw {seen} in {checkpoint}: choose another output"
            )

    def refresh(self) -> Receipt:
        """Measure the importances again, on the model in use and on all samples that are not forgotten."""
        with self.ledger.locked() as finished:
            if finished and finished.outcome == "measured again":
                return finished
            state, population = self.ledger.state, self.population()
            self._fill(state.next_store, state.current)
            receipt = self.receipt(state, "measured again", groups=tuple(population.groups))
            new = state.with_models(state.current, base=state.current, kept=state.kept)
            new = attrs.evolve(new, store=state.next_store, measured=True)
            return self.ledger.commit(new, Pending(receipt=receipt))

    def ask(self, name: str, *, samples: Iterable[int] = (), groups: Iterable[str] = ()) -> None:
        """Queue a request, such as a ticket, for training samples by their numbers now and for groups.

        What cannot be done is an error, and is not queued. Samples with the same content and labels are one sample.
        """
        numbers, names = [*samples], several(groups)
        with self.ledger.locked() as finished:
            population, receipts = self.population(), self.ledger.receipts()
            gone = {key for receipt in receipts if receipt.outcome == "forgotten" for key in receipt.groups}
            rows = population.asked(numbers, names, gone=gone, where=f"request {name!r}")
            request = Request(name=name, samples=tuple(sorted(set(self.hashes(rows)))), groups=names)
            done = [r for r in receipts if name in r.requests and r.outcome in {"forgotten", "nothing to forget"}]
            if finished and name in finished.requests and finished.outcome in {"rolled back", "set aside"}:
                return  # repeated after a crash
            if finished and name in finished.requests and self.ledger.forgotten().issuperset(request.samples):
                return
            if done and self.ledger.forgotten().issuperset(done[-1].samples):
                raise ConfigurationError(
                    f"request {name!r} was dealt with already (receipt {done[-1].number}: {done[-1].outcome}): "
                    "a request is asked for once"
                )
            self._rows(population, [request])
            self.ledger.queue.add(request)

    def withdraw(self, name: str) -> Receipt:
        """Take back a request that waits."""
        with self.ledger.locked() as finished:
            if finished and finished.outcome == "withdrawn" and name in finished.requests:
                return finished
            waiting = [request.name for request in self.ledger.queue.waiting()]
            if name not in waiting:
                raise ConfigurationError(f"expected a request that waits, saw {name!r}{nearest(name, waiting)}")
            receipt = self.receipt(self.ledger.state, "withdrawn", requests=(name,))
            self.ledger.commit(self.ledger.state, Pending(receipt=receipt, answered=(name,)))
            return receipt

    def work(self) -> Receipt | None:
        """Process all waiting requests in one edit, or one by one where that fails.

        A request that cannot be done is set aside, one that meets another error waits on, and neither stops the others.

        Returns:
            The last receipt, or None when no request was waiting.

        Raises:
            UnlearnKitError: The first error that a request met, after all others were processed.
        """
        with self.ledger.locked():
            waiting = self.ledger.queue.waiting()
            if not waiting:
                return None
            try:
                self.population()  # data that are not those of the ledger concern all requests
                return self._answer(waiting)
            except UnlearnKitError as error:
                state = self.ledger.state
                left = [request.name for request in self.ledger.queue.waiting()] if state.pending is None else []
                if left:
                    back = "`unlearnkit forget CONFIG.toml --withdraw NAME` takes one back"
                    error.add_note(f"Still waiting: {', '.join(left)}; {back}.")
                raise

    def _answer(self, waiting: Sequence[Request]) -> Receipt | None:
        receipt, errors = None, list[UnlearnKitError]()
        for requests in [waiting, *([request] for request in waiting if len(waiting) > 1)]:
            try:
                decision = self._decide(requests)
            except UnlearnKitError as error:
                errors += [error] if len(requests) == 1 else []
                continue
            receipt = self.ledger.commit(*decision)
            if requests is waiting:
                break
        if errors:
            raise errors[0]
        return receipt

    def _decide(self, requests: Sequence[Request]) -> Decision:
        """Decide on requests; an error of one that is not alone may be another's fault."""
        state, population, names = self.ledger.state, self.population(), tuple(request.name for request in requests)

        def answer(outcome: Outcome, reason: str, samples: tuple[str, ...] = ()) -> Decision:
            receipt = self.receipt(state, outcome, reason=reason, requests=names, samples=samples)
            return state, Pending(receipt=receipt, answered=names), ()

        try:
            rows = self._rows(population, requests)
        except ConfigurationError as error:
            if len(requests) > 1:
                raise
            return answer("set aside", str(error))
        if not len(rows):
            asked = tuple(sorted({digest for request in requests for digest in request.samples}))
            return answer("nothing to forget", "all of these samples were forgotten before", asked)
        return self._edit(state, population, rows, names)

    def population(self, *, put_back: Iterable[str] = ()) -> Population:
        """Return the training samples in their groups, without the forgotten ones that are not put back.

        A `MismatchError` says how the data differ from those of the ledger.
        """
        forgotten, data, now = self.ledger.forgotten().difference(put_back), self.experiment.bundle.train, self._now
        when = " before the edit that is rolled back" if put_back else ""
        where = f"the training data are not those of the ledger {self.ledger.folder}{when}"
        self.ledger.samples.check(now, forgotten=forgotten, where=where, name=partial(sample_name, data))
        return self._population(forgotten=(d in forgotten for d in now.digests))

    def _population(self, *, forgotten: Iterable[bool]) -> Population:
        kind = self.experiment.config.deletion.groups
        return Population.of(self.experiment.bundle, kind=kind, forgotten=forgotten)

    def _check_settings(self) -> None:
        """Refuse importances that were measured with other settings."""
        store = self.ledger.store
        if (kept := store.manifest.fingerprint) is not None:
            estimator = self.experiment.estimator(self.plugins)
            now = fingerprint_of(estimator, kept.model, objective=self.experiment.importance_objective)
            problems = kept.differences(attrs.evolve(now, precision=kept.precision))
            advice = "Set them as they were, or measure again: `unlearnkit ledger CONFIG.toml --refresh`"
            where = f"the importances in {store.folder} were measured with other settings"
            raise_all(["; ".join(problems) + f". {advice}"] if problems else [], where=where, error=StoreError)

    def hashes(self, rows: Iterable[int]) -> list[str]:
        """Return the keyed digests of training samples, as receipts have them, from their numbers now."""
        return [self._now.digests[row] for row in rows]

    @cached_property
    def _now(self) -> Samples:
        return self._samples(self.ledger.key())

    def _samples(self, key: bytes) -> Samples:
        return Samples.of(self.experiment.bundle.train, key=key, progress=self.progress)

    def _rows(self, population: Population, requests: Iterable[Request]) -> Rows:
        wanted = {digest for request in requests for digest in request.samples}
        return population.rows(digest in wanted for digest in self._now.digests)

    def model(self, kept: KeptModel) -> nn.Module:
        """Load a model of the ledger, on the device and in eval mode."""
        return self.ledger.models.load(self.ledger.state.path_to(kept), self.experiment.fresh_model(pretrained=False))

    def measure(self, base: KeptModel, rows: Rows) -> Importance:
        """Measure the importance of training samples on the model that the stored importances were measured on."""
        kind = self.ledger.store.manifest.fingerprint
        if kind is not None and kind.model != base.digest:
            raise StoreError(
                "the model that the importances were measured on was purged, and a part of a group must be measured on "
                "it: measure them again with `unlearnkit ledger CONFIG.toml --refresh`, or forget whole groups"
            )
        batches = self.experiment.importance_batches(self.experiment.bundle.train.subset(rows))
        return self.experiment.estimator(self.plugins).estimate(
            self.model(base),
            batches,
            objective=self.experiment.importance_objective,
            role=Role.FORGET,
            progress=self.progress,
        )

    def receipt(self, state: State, outcome: Outcome, **fields: Any) -> Receipt:
        """Make the next receipt about the model in use; without other fields the model after is the model before."""
        current = state.current
        about = {"model_before": current.digest, "model_after": current.digest, "model_file": current.file, **fields}
        return Receipt(
            number=state.receipts + 1,
            previous=state.head,
            time=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            outcome=outcome,
            seeds={"unlearning": self.experiment.config.seed},
            versions=versions(),
            **about,
        )

    def _fill(self, name: str, kept: KeptModel) -> None:
        experiment, groups = self.experiment, self.population().groups
        train = experiment.bundle.train
        fill(
            self.ledger.new_store(name),
            experiment.estimator(self.plugins),
            self.model(kept),
            {key: experiment.importance_batches(train.subset(rows)) for key, rows in groups.items()},
            objective=experiment.importance_objective,
            every=experiment.config.deletion.every,
            progress=self.progress,
        )

    def _edit(self, state: State, population: Population, rows: Rows, names: tuple[str, ...]) -> Decision:
        """Forget samples, or roll the edit back with a receipt that says why."""
        if not state.measured:
            raise StoreError(
                f"the importances in {self.ledger.folder} are not complete: `unlearnkit ledger CONFIG.toml` continues"
            )
        start, config, train = time.perf_counter(), self.experiment.config, self.experiment.bundle.train
        self._check_settings()
        self.ledger.store.verify()  # before the first change: making it smaller reads all of it
        measure, role = partial(self.measure, state.base), Role(config.importance.reference)
        forget, reference, parts = find(self.ledger.store, population, rows, measure=measure, role=role)
        seconds = {"importances": time.perf_counter() - start}
        whole, splits = population.whole(rows), population.splits(rows)
        model = self.model(state.current)
        before, after = self._scores(model, splits), Scores()
        receipt = self.receipt(
            state, "rolled back", requests=names, before=before, staleness=self.ledger.store.staleness().sentence()
        )

        def within_budget(report: Report) -> Report:
            if not report.changed and not report.buffers_changed:
                raise BudgetError(f"{report.sentence()} Choose other options, and ask again")
            after.update(self._scores(model, splits))
            check_budget(before, after, config.deletion.budget)
            return report

        try:
            method = chosen_method(config, config.deletion.method, key="deletion.method")
            report = self.experiment.pipeline(method, self.plugins).run(
                model,
                forget=forget,
                reference=reference,
                forget_data=self.experiment.importance_batches(train.subset(rows)),
                retain_data=self.experiment.importance_batches(train.subset(population.without(rows))),
                model_factory=self.experiment.make_model,
                objective=self.experiment.objective,
                seed=config.seed,
                accept=within_budget,
                progress=self.progress,
            )
        except BudgetError as error:
            if len(names) > 1:
                raise
            return state, Pending(receipt=attrs.evolve(receipt, reason=str(error)), answered=names), ()
        kept = self.ledger.models.put(model, known=report.model_after)
        patch = self._patch(state.current, model, report, names)
        host = peak_memory(self.experiment.device).host
        receipt = attrs.evolve(
            receipt,
            outcome="forgotten",
            reason="; ".join(remarks(before, after)),
            samples=tuple(sorted(self.hashes(rows))),
            groups=whole,
            model_after=kept.digest,
            model_file=kept.file,
            patch_file=patch.file if patch else "",
            edit=report.to_dict(),
            after=after,
            seconds={**seconds, **report.seconds, "all": time.perf_counter() - start},
            peak_mib=None if host is None else round(host / MIB, 1),
        )
        recorded = Edit(
            before=state.current.digest, after=kept.digest, fraction=report.fraction, request=str(receipt.number)
        )
        earlier = (*state.kept, state.current)
        earlier = earlier[max(0, len(earlier) - config.deletion.keep) :]
        return (
            state.with_models(kept, base=self.base(state, kept), kept=earlier, patch=patch),
            Pending(receipt=receipt, remove=whole, edit=recorded, answered=names),
            parts.items(),
        )

    def base(self, state: State, current: KeptModel) -> KeptModel:
        """Return the model that the importances were measured on, which is kept; the one in use where it was purged."""
        kind = self.ledger.store.manifest.fingerprint
        return state.base if kind is None or kind.model == state.base.digest else current

    def _patch(self, before: KeptModel, model: nn.Module, report: Report, names: tuple[str, ...]) -> KeptModel | None:
        """Keep the model before the edit as a patch, where that is asked for or smaller; None keeps the full model."""
        keep_as, sizes = self.experiment.config.deletion.keep_as, parameters(model)
        size = sum(t.changed * TensorPatch.bytes_each(sizes[t.name].element_size()) for t in report.tensors)
        larger = size >= sum(tensor.nbytes for tensor in model_state(model).values())
        if keep_as == "model" or (keep_as == "smaller" and larger) or report.model_after == before.digest:
            return None
        about = {"method": report.method, "requests": list(names)}
        return self.ledger.models.put_patch(before, model, after=report.model_after, about=about)

    def _scores(self, model: nn.Module, splits: Mapping[str, LabelledImages]) -> Scores:
        found = self.experiment.scores(model, splits, progress=self.progress)
        return {name: attrs.asdict(score) for name, score in found.items()}


def rollback(deletion: Deletion) -> Receipt:
    """Put the model back that was in use before the last edit, bit-identical; it has the forgotten samples again.

    The store no longer has the importances of these samples: measure them again before the next request. A rollback
    that was interrupted is finished, and another one is not started.
    """
    ledger = deletion.ledger
    with ledger.locked() as finished:
        if finished and finished.outcome == "restored":
            return finished
        state = ledger.state
        if not state.kept:
            raise ConfigurationError(
                "expected an earlier model to put back, saw none: it was purged, deletion.keep is 0, or nothing was "
                "edited yet"
            )
        earlier, current = state.kept[-1], state.current.digest
        edits = [r for r in ledger.receipts() if r.outcome == "forgotten" and r.model_after == current]
        if not edits:
            raise StoreError(f"expected a receipt of the edit that made the model {current}, saw none")
        undone = edits[-1]
        deletion.population(put_back=undone.samples)  # a sample in the model whose data are gone cannot be forgotten
        if earlier.through:
            earlier = ledger.models.put(deletion.model(earlier))
        else:
            ledger.models.check(earlier)  # the model in use may be damaged, which this repairs
        receipt = deletion.receipt(
            state,
            "restored",
            reason=f"receipt {undone.number} was rolled back: its samples are in the model again",
            requests=undone.requests,
            samples=undone.samples,
            groups=undone.groups,
            model_after=earlier.digest,
            model_file=earlier.file,
        )
        if earlier.digest in ledger.store.manifest.models:
            new = state.with_models(earlier, base=deletion.base(state, earlier), kept=state.kept[:-1])
            return ledger.commit(new, Pending(receipt=receipt, back_to=earlier.digest))
        # The importances were measured after the edit: of another model, and without these samples.
        new = state.with_models(earlier, base=earlier, kept=state.kept[:-1])
        ledger.new_store(state.next_store, empty=True)
        return ledger.commit(attrs.evolve(new, store=state.next_store, measured=False), Pending(receipt=receipt))


def purge(deletion: Deletion) -> Receipt:
    """Delete all earlier models and the patches that lead back to them.

    The model that the importances were measured on goes too: requests for parts of groups then need new importances.
    """
    ledger = deletion.ledger
    with ledger.locked() as finished:
        if finished and finished.outcome == "purged":
            return finished
        state = ledger.state
        earlier = {kept.digest for kept in state.models} - {state.current.digest}
        receipt = deletion.receipt(state, "purged", reason=f"{len(earlier)} earlier models")
        ledger.commit(state.with_models(state.current, base=state.current, kept=()), Pending(receipt=receipt))
        left = sorted(path.name for path in ledger.models.folder.iterdir() if path.name != state.current.name)
        if left:
            raise StoreError(f"{ledger.folder}: cannot delete {', '.join(left)}: nothing refers to them; delete them")
        return receipt


def check_budget(before: Scores, after: Scores, budget: float) -> None:
    if "retain-test" not in before:
        return
    was, now = (scores["retain-test"]["accuracy"] for scores in (before, after))
    if was is None or now is None:
        raise ConfigurationError("objective: deletion.budget is a loss of accuracy: expected a CrossEntropy")
    if was - now > budget:
        raise BudgetError(
            f"expected to lose at most {budget:.3g} of the accuracy on retained test data, saw {was:.3f} → {now:.3f}: "
            "choose weaker options, or raise deletion.budget"
        )


def remarks(before: Scores, after: Scores) -> Iterator[str]:
    """Yield what somebody who reads that an edit forgot must know."""
    was, now = (scores["forget-train"]["loss"] for scores in (before, after))
    if was is not None and now is not None and now <= was:
        yield f"but their loss did not rise ({was:.3g} → {now:.3g}), so the edit may have forgotten nothing"
    if "retain-test" not in before:
        yield "no test data are retained, so the budget was not checked"


def find_ledger(config: Config, *, told: Callable[[Receipt], None] | None = None) -> Ledger:
    folder = Path(config.deletion.folder) if config.deletion.folder else Path(config.output) / "ledger"
    return Ledger(folder, salt=config.deletion.salt or None, told=told)


def find(
    store: ImportanceStore, population: Population, rows: Rows, *, measure: Callable[[Rows], Importance], role: Role
) -> tuple[Importance, Importance, dict[str, Importance]]:
    """Return importances of the forget set and the reference, and of the parts of groups that were measured."""
    groups, whole = population.groups, population.whole(rows)
    sizes = {key: len(members) for key, members in groups.items()}
    stored = {key: entry.samples for key, entry in store.manifest.groups.items()}
    if stored != sizes:
        differ = sorted(key for key in {*stored, *sizes} if stored.get(key) != sizes.get(key))
        raise StoreError(
            f"the importances in {store.folder} do not cover the training data that is left: groups {differ} differ. "
            "Measure them again: `unlearnkit ledger CONFIG.toml --refresh`"
        )
    cut = {key: members[np.isin(members, rows)] for key, members in groups.items() if key not in whole}
    measured = {key: measure(part) for key, part in cut.items() if len(part)}
    kept = partial(on_disk, within=store.scratch)
    parts = {key: attrs.evolve(part, totals=kept(part.totals.items())) for key, part in measured.items()}
    total = store.total()
    # Parts may have been measured on an older model than the one in use; the store records how old importances are.
    same = [
        attrs.evolve(p, fingerprint=attrs.evolve(p.fingerprint, model=total.fingerprint.model)) for p in parts.values()
    ]
    forget = _sum([*([store.groups(whole)] if whole else []), *same], kept)
    if role is Role.FULL:
        return forget, total, parts
    if not parts:
        return forget, store.rest(whole), parts
    rest = kept(difference(total.totals, forget.totals, terms=total.count, eps=store.rounding, lost=[]))
    return forget, attrs.evolve(total, totals=rest, role=Role.RETAIN, **counts_of_difference(total, forget)), parts


def _sum(pieces: list[Importance], kept: Callable[[Iterable[tuple[str, Tensor]]], dict[str, Tensor]]) -> Importance:
    first, *others = pieces
    if not others:
        return attrs.evolve(first, role=Role.FORGET)
    trail = first.trail
    for other in others:
        problems = [*first.name_problems(other.totals, shapes_only=True), *first.kind_problems(other)]
        raise_all(problems, where="two importances do not match")
        trail = trail.then(other.trail)
    totals = kept(summed([piece.totals for piece in pieces]))
    return attrs.evolve(first, totals=totals, role=Role.FORGET, trail=trail, **counts_of_sum(pieces))
