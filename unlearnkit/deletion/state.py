"""Where a ledger stands: one small file that is replaced whole. A change of the ledger happens when it is replaced."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, final

import attrs

from unlearnkit.deletion.receipt import Receipt
from unlearnkit.importance.store import Edit
from unlearnkit.utils.checksummed_json import read_sealed, write_sealed
from unlearnkit.utils.errors import StoreError

FORMAT = "unlearnkit-ledger-2"
FILE = "ledger.json"


def _named(pattern: str) -> Callable[[Any, "attrs.Attribute[str]", str], None]:
    """Refuse other names: they come from a file that somebody may have edited, and must not lead out of the folder."""

    def check(_: Any, field: "attrs.Attribute[str]", value: str) -> None:
        if not re.fullmatch(pattern, value):
            raise StoreError(f"{field.name}: expected a name as {pattern}, saw {value!r}")

    return check


def _parts_named(_: Any, field: "attrs.Attribute[Any]", value: Mapping[str, str]) -> None:
    for name in value.values():
        _named(r"[0-9a-f]{16}\.safetensors")(None, field, name)


@final
@attrs.frozen(kw_only=True)
class KeptModel:
    """A model of the ledger: whole, or as a patch with the values that an edit of it overwrote."""

    digest: str = attrs.field(validator=_named(r"[0-9a-f]{32}"))
    file: str
    through: str = attrs.field(default="", validator=_named(r"([0-9a-f]{32})?"))

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.digest}{'.patch' if self.through else ''}.safetensors"


@final
@attrs.frozen(kw_only=True)
class Pending:
    """What is decided and must still be done; done again after a crash, it does nothing twice."""

    receipt: Receipt
    remove: tuple[str, ...] = ()
    parts: Mapping[str, str] = attrs.field(factory=dict, validator=_parts_named)
    edit: Edit | None = None
    back_to: str = ""
    answered: tuple[str, ...] = ()


@final
@attrs.frozen(kw_only=True)
class State:
    """Where a ledger stands."""

    current: KeptModel
    base: KeptModel
    kept: tuple[KeptModel, ...] = ()
    between: tuple[KeptModel, ...] = ()
    store: str = attrs.field(default="importances-0", validator=_named(r"importances-[0-9]+"))
    head: str = ""
    receipts: int = 0
    salt: str = ""
    pending: Pending | None = None

    @property
    def models(self) -> tuple[KeptModel, ...]:
        """All models of the ledger, each once."""
        return tuple(dict.fromkeys((self.current, self.base, *self.kept, *self.between)))

    def way_to(self, model: KeptModel) -> tuple[KeptModel, ...]:
        """Return how a model is put together."""
        known, way = {m.digest: m for m in self.models}, [model]
        while way[-1].through:
            step = known.get(way[-1].through)
            if step is None or step in way:
                raise StoreError(f"the model {model.digest} is a patch of the model {way[-1].through}, which is gone")
            way.append(step)
        return tuple(reversed(way))

    def standing(
        self, current: KeptModel, *, base: KeptModel, kept: Iterable[KeptModel], patch: KeptModel | None = None
    ) -> "State":
        """Let other models be in use and kept; patches that lead to them stay, everything else goes."""
        known = {model.digest: model for model in (*self.models, *([patch] if patch else []), current)}
        base, kept = known[base.digest], tuple(known[model.digest] for model in kept)
        whole = attrs.evolve(self, current=current, base=base, kept=kept, between=tuple(known.values()))
        ways = dict.fromkeys(step for root in (base, *kept) for step in whole.way_to(root))
        return attrs.evolve(whole, between=tuple(step for step in ways if step not in {current, base, *kept}))


def write_state(folder: Path, state: State) -> None:
    """Replace the state."""
    write_sealed(folder / FILE, state, kind=FORMAT)


def read_state(folder: Path) -> State:
    """Read the state and check it."""
    return read_sealed(folder / FILE, State, kind=FORMAT)
