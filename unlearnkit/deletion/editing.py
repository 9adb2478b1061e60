"""One edit for all that is waiting: importances, method, limits, receipt."""

import time
from typing import TYPE_CHECKING

import attrs
from torch import nn

from unlearnkit.data import LabelledImages
from unlearnkit.deletion.importances import Found, find
from unlearnkit.deletion.population import Population, Rows
from unlearnkit.deletion.receipt import Receipt
from unlearnkit.deletion.state import KeptModel, Pending, State
from unlearnkit.experiments.experiment import chosen_method, make_unlearner
from unlearnkit.importance.provenance import Role
from unlearnkit.importance.store import Edit
from unlearnkit.models.checkpoint import model_state
from unlearnkit.models.parameters import parameters
from unlearnkit.pipeline import Pipeline
from unlearnkit.unlearning.patch import TensorPatch
from unlearnkit.unlearning.report import Report
from unlearnkit.utils.errors import BudgetError, ConfigurationError
from unlearnkit.utils.memory import MIB, peak_memory

if TYPE_CHECKING:
    from unlearnkit.deletion.work import Deletion

Splits = dict[str, LabelledImages]
Scores = dict[str, dict[str, float | int | None]]


def edit(deletion: "Deletion", state: State, population: Population, rows: Rows, names: tuple[str, ...]) -> Receipt:
    """Forget samples, or say why they were not."""
    start, config = time.perf_counter(), deletion.experiment.config
    deletion.ledger.store.verify()  # all of it is read when it is made smaller: then there is no way back
    found = find(
        deletion.ledger.store,
        population,
        rows,
        measure=lambda part: deletion.measure(state.base, part),
        role=Role(config.importance.reference),
    )
    seconds = {"importances": time.perf_counter() - start}
    splits = dict(population.splits(rows))
    model = deletion.model(state.current)
    before = _scores(deletion, model, splits)
    receipt = deletion.receipt(
        state, "rolled back", requests=names, before=before, staleness=deletion.ledger.store.staleness().sentence()
    )
    try:
        report = _unlearn(deletion, model, found, rows, population.without(rows))
        after = _scores(deletion, model, splits)
        _check_budget(before, after, config.deletion.budget)
    except BudgetError as error:
        receipt = attrs.evolve(receipt, reason=str(error))
        deletion.ledger.decide(state, Pending(receipt=receipt, answered=names))
        return receipt
    kept, patch = deletion.ledger.models.put(model), _patch(deletion, state.current, model, report, names)
    receipt = attrs.evolve(
        receipt,
        outcome="forgotten",
        samples=tuple(sorted(deletion.ledger.hashes(rows.tolist()))),
        groups=found.whole,
        model_after=kept.digest,
        model_file=kept.file,
        patch_file=patch.file if patch else "",
        edit=report.to_dict(),
        after=after,
        seconds={**seconds, **report.seconds, "all": time.perf_counter() - start},
        peak_mib=_mib(peak_memory(deletion.experiment.device).host),
    )
    recorded = Edit(
        before=state.current.digest, after=kept.digest, fraction=report.fraction, request=str(receipt.number)
    )
    pending = Pending(receipt=receipt, remove=found.whole, edit=recorded, answered=names)
    earlier = (*state.kept, state.current)
    earlier = earlier[len(earlier) - config.deletion.keep :]
    new = state.standing(kept, base=state.base, kept=earlier, patch=patch)
    deletion.ledger.decide(new, pending, found.parts.items())
    return receipt


def _patch(
    deletion: "Deletion", before: KeptModel, model: nn.Module, report: Report, names: tuple[str, ...]
) -> KeptModel | None:
    """Keep the model before the edit as a patch, where that is asked for or smaller; None keeps it whole."""
    keep_as, sizes = deletion.experiment.config.deletion.keep_as, parameters(model)
    size = sum(t.changed * TensorPatch.bytes_each(sizes[t.name].element_size()) for t in report.tensors)
    larger = size >= sum(tensor.nbytes for tensor in model_state(model).values())
    if keep_as == "model" or (keep_as == "smaller" and larger) or report.model_after == before.digest:
        return None
    return deletion.ledger.models.put_patch(before, model, about={"method": report.method, "requests": list(names)})


def _unlearn(deletion: "Deletion", model: nn.Module, found: Found, go: Rows, stay: Rows) -> Report:
    experiment, config = deletion.experiment, deletion.experiment.config
    method, train = chosen_method(config, config.deletion.method, key="deletion.method"), experiment.bundle.train
    pipeline = Pipeline(
        unlearner=make_unlearner(method, deletion.plugins),
        estimator=experiment.estimator(deletion.plugins),
        normalise=method.normalise,
        reference_role=Role(config.importance.reference),
        max_fraction=method.max_fraction,
        plugins=deletion.plugins,
    )
    return pipeline.run(
        model,
        forget=found.forget,
        reference=found.reference,
        forget_data=experiment.importance_batches(train.subset(go)),
        retain_data=experiment.importance_batches(train.subset(stay)),
        model_factory=experiment.fresh_model,
        objective=experiment.objective,
        seed=config.seed,
        progress=deletion.progress,
    )


def _scores(deletion: "Deletion", model: nn.Module, splits: Splits) -> Scores:
    found = deletion.experiment.scores(model, splits, progress=deletion.progress)
    return {name: attrs.asdict(score) for name, score in found.items()}


def _check_budget(before: Scores, after: Scores, budget: float) -> None:
    was, now = (scores["retain-test"]["accuracy"] for scores in (before, after))
    if was is None or now is None:
        raise ConfigurationError("objective: deletion.budget is a loss of accuracy: expected a CrossEntropy")
    if was - now > budget:
        raise BudgetError(
            f"expected to lose at most {budget:.3g} of the accuracy on retained test data, saw {was:.4f} → {now:.4f}: "
            "choose weaker options, or raise deletion.budget"
        )


def _mib(size: int | None) -> float | None:
    return None if size is None else round(size / MIB, 1)
