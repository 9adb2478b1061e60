"""The models of a ledger as files: whole, or as patches that lead back from one to another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs
from torch import nn

from unlearnkit.checkpoint import load_checkpoint, model_state, read_checkpoint, save_checkpoint
from unlearnkit.deletion.state import KeptModel
from unlearnkit.errors import StoreError
from unlearnkit.parameters import digest
from unlearnkit.patch import Patch
from unlearnkit.store.shards import file_digest


@final
@attrs.frozen
class Models:
    """A folder of models.

    Attributes:
        folder: Where they lie.
    """

    folder: Path

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return list(self.folder.iterdir())

    def put(self, model: nn.Module) -> KeptModel:
        """Write a model; nothing refers to it yet.

        Args:
            model: Any of the ledger's kind.

        Returns:
            Its digests.
        """
        kept = KeptModel(digest=digest(model), file="")
        save_checkpoint(model, self._path(kept))
        return attrs.evolve(kept, file=file_digest(self._path(kept)))

    def put_patch(self, before: KeptModel, model: nn.Module, *, about: Mapping[str, Any]) -> KeptModel:
        """Write what an edit overwrote; nothing refers to it yet.

        Args:
            before: The model before the edit, whole.
            model: The edited one.
            about: Plain values to keep with the patch.

        Returns:
            The model before the edit, as a patch.
        """
        kept = KeptModel(digest=before.digest, file="", through=digest(model))
        earlier, _ = read_checkpoint(self._path(before))
        Patch.between(earlier, model_state(model), about=about).save(self._path(kept))
        return attrs.evolve(kept, file=file_digest(self._path(kept)))

    def load(self, way: Sequence[KeptModel], model: nn.Module) -> nn.Module:
        """Load a model into one of the same kind.

        Args:
            way: A whole model, and the patches to take back one after the other; see `State.way_to`.
            model: Of the kind; in place.

        Returns:
            The model, in eval mode.

        Raises:
            StoreError: A file is missing or was changed.
        """
        whole, *patches = way
        self.check(whole)
        load_checkpoint(model, self._path(whole), undo=False)
        for patch in patches:
            self.check(patch)
            Patch.load(self._path(patch)).undo(model_state(model))
        return model.eval()

    def check(self, kept: KeptModel) -> None:
        """Compare a file with the digest of what was written.

        Args:
            kept: Which.

        Raises:
            StoreError: It is missing or was changed.
        """
        path = self._path(kept)
        if path.is_symlink() or not path.is_file():
            raise StoreError(f"{path}: expected a model of the ledger, saw none: it was purged, or somebody removed it")
        if file_digest(path) != kept.file:
            raise StoreError(f"{path}: expected the digest of what was written, saw another: the model was changed")

    def _path(self, kept: KeptModel) -> Path:
        return self.folder / kept.name
