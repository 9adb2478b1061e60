"""The two importances of a deletion: stored ones for whole groups, measured ones for parts of groups."""

from collections.abc import Callable, Iterable
from typing import final

import attrs
import numpy as np
from torch import Tensor

from unlearnkit.deletion.requests import Population, Rows
from unlearnkit.importance import Importance, ImportanceStore, Role
from unlearnkit.importance.store.manifest import Entry
from unlearnkit.importance.store.shards import difference, on_disk, summed
from unlearnkit.utils.errors import StoreError, raise_all


@final
@attrs.frozen(kw_only=True, eq=False)
class Found:
    """The importances of an edit, and what is to be removed from the store afterwards."""

    forget: Importance
    reference: Importance
    whole: tuple[str, ...]
    parts: dict[str, Importance]


def find(
    store: ImportanceStore, population: Population, rows: Rows, *, measure: Callable[[Rows], Importance], role: Role
) -> Found:
    """Look up and measure importances, without changing the store."""
    groups, whole = population.groups, population.whole(rows)
    _check_coverage(store, {key: len(members) for key, members in groups.items()})
    cut = {key: members[np.isin(members, rows)] for key, members in groups.items() if key not in whole}
    measured = {key: measure(part) for key, part in cut.items() if len(part)}
    parts = {key: attrs.evolve(part, totals=on_disk(part.totals.items())) for key, part in measured.items()}
    total = store.total()
    # Parts may have been measured on an older model than the one in use; the store records how old importances are.
    same = [
        attrs.evolve(p, fingerprint=attrs.evolve(p.fingerprint, model=total.fingerprint.model)) for p in parts.values()
    ]
    forget = _sum([*([store.groups(whole)] if whole else []), *same])
    if role is Role.FULL:
        reference = total
    else:
        reference = _without(total, forget, eps=store.rounding) if parts else store.rest(whole)
    return Found(forget=forget, reference=reference, whole=whole, parts=parts)


def _check_coverage(store: ImportanceStore, sizes: dict[str, int]) -> None:
    stored = {key: entry.samples for key, entry in store.manifest.groups.items()}
    if stored != sizes:
        differ = sorted(key for key in {*stored, *sizes} if stored.get(key) != sizes.get(key))
        raise StoreError(
            f"the importances in {store.folder} do not cover the training data that is left: groups {differ} differ. "
            "Measure them again: `unlearnkit ledger CONFIG.toml --refresh`"
        )


def _sum(pieces: list[Importance]) -> Importance:
    first, *others = pieces
    if not others:
        return attrs.evolve(first, role=Role.FORGET)
    trail = first.trail
    for other in others:
        problems = [*first.name_problems(other.totals, shapes_only=True), *first.kind_problems(other)]
        raise_all(problems, where="two importances do not match")
        trail = trail.then(other.trail)
    totals, entry = summed([piece.totals for piece in pieces]), Entry.together([Entry.of(piece) for piece in pieces])
    return attrs.evolve(_importance(first, totals, entry, Role.FORGET), trail=trail)


def _without(total: Importance, part: Importance, *, eps: float) -> Importance:
    rest = difference(total.totals, part.totals, terms=total.count, eps=eps, lost=[])
    return _importance(total, rest, Entry.of(total).without(part), Role.RETAIN)


def _importance(like: Importance, totals: Iterable[tuple[str, Tensor]], entry: Entry, role: Role) -> Importance:
    known = attrs.evolve(like, count=entry.count, samples=entry.samples, relative_error=entry.relative_error)
    return attrs.evolve(known, totals=on_disk(totals), role=role)
