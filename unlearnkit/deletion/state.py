"""The files of a ledger: its state, replaced atomically; receipts in a chain of digests; and models."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import attrs
from attrs.validators import deep_mapping, instance_of
from torch import nn

from unlearnkit.importance.store.files import Edit, file_digest
from unlearnkit.models import digest, load_checkpoint, model_state, save_checkpoint
from unlearnkit.models.checkpoint import read_checkpoint
from unlearnkit.unlearning import Patch
from unlearnkit.utils.checksummed_json import read_sealed, seal_digest, write_sealed
from unlearnkit.utils.errors import StoreError

FORMAT = "unlearnkit-ledger-3"
FILE = "ledger.json"
RECEIPT_FORMAT = "unlearnkit-receipt-3"
STATEMENT = (
    "This is approximate unlearning. The receipt says what was asked and what was done; it is no certificate of "
    "erasure: low accuracy on forgotten samples does not prove that they left no trace in the model."
)

Outcome = Literal[
    "started",
    "forgotten",
    "rolled back",
    "nothing to forget",
    "set aside",
    "withdrawn",
    "restored",
    "purged",
    "measured again",
]


@final
@attrs.frozen(kw_only=True)
class Receipt:
    """What was done about deletion requests; ``samples`` are keyed digests, ``digest`` shows any later change.

    ``data``, in the first receipt, is the digest of the list of all training samples.
    """

    number: int
    previous: str
    time: str
    outcome: Outcome
    data: str = ""
    reason: str = ""
    requests: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    model_before: str = ""
    model_after: str = ""
    model_file: str = ""
    patch_file: str = ""
    edit: Mapping[str, Any] = attrs.field(factory=dict)
    before: Mapping[str, Any] = attrs.field(factory=dict)
    after: Mapping[str, Any] = attrs.field(factory=dict)
    staleness: str = ""
    seconds: Mapping[str, float] = attrs.field(factory=dict)
    peak_mib: float | None = None
    seeds: Mapping[str, int] = attrs.field(factory=dict)
    versions: Mapping[str, str] = attrs.field(factory=dict)
    statement: str = STATEMENT

    @property
    def digest(self) -> str:
        """Hash of everything in it, the previous receipt's digest included: 64 hexadecimal digits."""
        return seal_digest(self)

    def sentence(self) -> str:
        # Quoted where it could be taken for another part of the sentence.
        names = [name if re.fullmatch(r"[\w.:#/@+-]+", name) else repr(name) for name in self.requests]
        asked = f" ({', '.join(names)})" if names else ""
        what = {
            "started": "the record was started",
            "forgotten": f"{len(self.samples)} samples were forgotten",
            "rolled back": "the edit was rolled back, and the model is as it was",
            "nothing to forget": "there was nothing to forget",
            "set aside": "the request cannot be done and was set aside",
            "withdrawn": "the request was withdrawn",
            "restored": "an earlier model was put back",
            "purged": "earlier models were deleted",
            "measured again": "the importances were measured again",
        }[self.outcome]
        return f"Receipt {self.number}{asked}: {what}{': ' if self.reason else ''}{self.reason}."

    def write(self, folder: Path) -> None:
        """Write it to a folder of receipts, unless it is there already."""
        path = folder / receipt_name(self.number)
        if not path.exists():
            write_sealed(path, self, kind=RECEIPT_FORMAT)
        elif read_sealed(path, Receipt, kind=RECEIPT_FORMAT) != self:
            raise StoreError(f"{path} already exists with another receipt")


def lost_accuracy(receipts: Iterable[Receipt]) -> tuple[int, float]:
    """Return how many edits led to the model in use, and how much retained test accuracy they cost in all."""
    edits: list[Receipt] = []
    for receipt in receipts:
        if receipt.outcome == "forgotten":
            edits.append(receipt)
        elif receipt.outcome == "restored":
            edits.pop()
    scores = [[each.get("retain-test", {}).get("accuracy") for each in (r.before, r.after)] for r in edits]
    return len(edits), sum(was - now for was, now in scores if was is not None and now is not None)


def _named(pattern: str) -> Callable[[Any, "attrs.Attribute[str]", str], None]:
    """Refuse other names: the file may have been edited by somebody, and must not lead out of the folder."""

    def check(_: Any, field: "attrs.Attribute[str]", value: str) -> None:
        if not re.fullmatch(pattern, value):
            raise StoreError(f"{field.name}: expected a name as {pattern}, saw {value!r}")

    return check


@final
@attrs.frozen(kw_only=True)
class KeptModel:
    """A model version: stored whole, or as a reverse patch of the version ``through``."""

    digest: str = attrs.field(validator=_named(r"[0-9a-f]{32}"))
    file: str
    through: str = attrs.field(default="", validator=_named(r"([0-9a-f]{32})?"))

    @property
    def name(self) -> str:
        return f"{self.digest}{'.patch' if self.through else ''}.safetensors"


@final
@attrs.frozen(kw_only=True)
class Pending:
    """What is decided and still to be done; idempotent, so that it can be repeated after a crash."""

    receipt: Receipt
    remove: tuple[str, ...] = ()
    parts: Mapping[str, str] = attrs.field(
        factory=dict, validator=deep_mapping(instance_of(str), _named(r"[0-9a-f]{16}\.safetensors"))
    )
    edit: Edit | None = None
    back_to: str = ""
    answered: tuple[str, ...] = ()

    @property
    def new_model(self) -> bool:
        """Whether another model is in use afterwards."""
        return self.edit is not None or self.back_to != ""


@final
@attrs.frozen(kw_only=True)
class State:
    """The models in use and kept, the importances, the last receipt, and what is still to be done.

    ``measured`` says that the store has the importances of all groups.
    """

    current: KeptModel
    base: KeptModel
    kept: tuple[KeptModel, ...] = ()
    between: tuple[KeptModel, ...] = ()
    store: str = attrs.field(default="importances-0", validator=_named(r"importances-[0-9]+"))
    measured: bool = False
    head: str = ""
    receipts: int = 0
    salt: str = ""
    pending: Pending | None = None

    @property
    def models(self) -> tuple[KeptModel, ...]:
        return tuple(dict.fromkeys((self.current, self.base, *self.kept, *self.between)))

    @property
    def next_store(self) -> str:
        """The store that measuring again fills."""
        return f"importances-{int(self.store.rpartition('-')[2]) + 1}"

    def path_to(self, model: KeptModel) -> tuple[KeptModel, ...]:
        """Return the stored model and the patches that give a model, in this order."""
        known, chain = {m.digest: m for m in self.models}, [model]
        while chain[-1].through:
            step = known.get(chain[-1].through)
            if step is None or step in chain:
                raise StoreError(
                    f"the model {model.digest} is a patch of the model {chain[-1].through}, which is missing"
                )
            chain.append(step)
        return tuple(reversed(chain))

    def with_models(
        self, current: KeptModel, *, base: KeptModel, kept: Iterable[KeptModel], patch: KeptModel | None = None
    ) -> "State":
        """Return a state with other models in use and kept; only they, and the patches that lead to them, stay."""
        known = {model.digest: model for model in (*self.models, *([patch] if patch else []), current)}
        base, kept = known[base.digest], tuple(known[model.digest] for model in kept)
        complete = attrs.evolve(self, current=current, base=base, kept=kept, between=tuple(known.values()))
        needed = dict.fromkeys(step for root in (base, *kept) for step in complete.path_to(root))
        return attrs.evolve(complete, between=tuple(step for step in needed if step not in {current, base, *kept}))


def write_state(folder: Path, state: State) -> None:
    write_sealed(folder / FILE, state, kind=FORMAT)


def read_receipts(folder: Path) -> list[Receipt]:
    """Read ``000001.json`` and so on, and check each receipt by itself and against the one before it."""
    found: list[Receipt] = []
    for number, path in enumerate(sorted(folder.glob("[0-9]*.json")), start=1):
        if path.name != receipt_name(number):
            raise StoreError(f"{folder}: expected the receipt {receipt_name(number)}, saw {path.name}: one is missing")
        receipt = read_sealed(path, Receipt, kind=RECEIPT_FORMAT)
        before = found[-1].digest if found else ""
        if receipt.number != number or receipt.previous != before:
            raise StoreError(
                f"{path}: expected receipt {number} after {before or 'none'}, saw receipt {receipt.number} after "
                f"{receipt.previous or 'none'}: the chain is broken here"
            )
        found.append(receipt)
    return found


def receipt_name(number: int) -> str:
    return f"{number:06d}.json"


@final
@attrs.frozen
class Models:
    """The folder of a ledger's models, stored whole or as reverse patches."""

    folder: Path

    def put(self, model: nn.Module, *, known: str = "") -> KeptModel:
        """Write a model, whose digest may be known, before anything refers to it."""
        kept = KeptModel(digest=known or digest(model), file="")
        save_checkpoint(model, self._path(kept))
        return attrs.evolve(kept, file=file_digest(self._path(kept)))

    def put_patch(self, before: KeptModel, model: nn.Module, *, after: str, about: Mapping[str, Any]) -> KeptModel:
        """Write the values that an edit overwrote, before anything refers to them; ``after`` is the model's digest."""
        kept = KeptModel(digest=before.digest, file="", through=after)
        earlier, _ = read_checkpoint(self._path(before))
        Patch.between(earlier, model_state(model), about=about).save(self._path(kept))
        return attrs.evolve(kept, file=file_digest(self._path(kept)))

    def load(self, chain: Sequence[KeptModel], model: nn.Module) -> nn.Module:
        """Load a model, by its `State.path_to`, into one of the same kind."""
        stored, *patches = chain
        self.check(stored)
        load_checkpoint(model, self._path(stored), undo=False)
        for patch in patches:
            self.check(patch)
            Patch.load(self._path(patch)).undo(model_state(model))
        return model.eval()

    def check(self, kept: KeptModel) -> None:
        path = self._path(kept)
        if path.is_symlink() or not path.is_file():
            raise StoreError(f"{path}: expected a model of the ledger, saw none: it was purged, or somebody removed it")
        if file_digest(path) != kept.file:
            raise StoreError(f"{path}: expected the digest of what was written, saw another: the model was changed")

    def _path(self, kept: KeptModel) -> Path:
        return self.folder / kept.name
