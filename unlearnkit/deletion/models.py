"""The models of a ledger as files: whole, or as patches that lead back from one to another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs
from torch import nn

from unlearnkit.deletion.state import KeptModel
from unlearnkit.importance.store.shards import file_digest
from unlearnkit.models.checkpoint import load_checkpoint, model_state, read_checkpoint, save_checkpoint
from unlearnkit.models.parameters import digest
from unlearnkit.unlearning.patch import Patch
from unlearnkit.utils.errors import StoreError


@final
@attrs.frozen
class Models:
    """A folder of models."""

    folder: Path

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return list(self.folder.iterdir())

    def put(self, model: nn.Module) -> KeptModel:
        """Write a model; nothing refers to it yet."""
        kept = KeptModel(digest=digest(model), file="")
        save_checkpoint(model, self._path(kept))
        return attrs.evolve(kept, file=file_digest(self._path(kept)))

    def put_patch(self, before: KeptModel, model: nn.Module, *, about: Mapping[str, Any]) -> KeptModel:
        """Write what an edit overwrote; nothing refers to it yet."""
        kept = KeptModel(digest=before.digest, file="", through=digest(model))
        earlier, _ = read_checkpoint(self._path(before))
        Patch.between(earlier, model_state(model), about=about).save(self._path(kept))
        return attrs.evolve(kept, file=file_digest(self._path(kept)))

    def load(self, way: Sequence[KeptModel], model: nn.Module) -> nn.Module:
        """Load a model into one of the same kind."""
        whole, *patches = way
        self.check(whole)
        load_checkpoint(model, self._path(whole), undo=False)
        for patch in patches:
            self.check(patch)
            Patch.load(self._path(patch)).undo(model_state(model))
        return model.eval()

    def check(self, kept: KeptModel) -> None:
        """Compare a file with the digest of what was written."""
        path = self._path(kept)
        if path.is_symlink() or not path.is_file():
            raise StoreError(f"{path}: expected a model of the ledger, saw none: it was purged, or somebody removed it")
        if file_digest(path) != kept.file:
            raise StoreError(f"{path}: expected the digest of what was written, saw another: the model was changed")

    def _path(self, kept: KeptModel) -> Path:
        return self.folder / kept.name
