"""``unlearnkit patch``: an edit as a file of its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearnkit.cli.console import line, out
from unlearnkit.cli.options import Overwrite, with_shared_options
from unlearnkit.utils.errors import StoreError

if TYPE_CHECKING:
    from unlearnkit.unlearning import Patch

app = typer.Typer(
    name="patch",
    help="Keep an edit as a file: make, apply, revert, compose and inspect patches.",
    no_args_is_help=True,
)

Checkpoint = Annotated[Path, typer.Argument(help="Weights of a model, as safetensors.")]
PatchFile = Annotated[Path, typer.Argument(help="A patch file.")]
Output = Annotated[Path, typer.Argument(help="File to write.")]


def diff(
    before: Checkpoint,
    after: Checkpoint,
    output: Output,
    keep_old: Annotated[bool, typer.Option(help="Keep the old values, which `revert` needs.")] = True,
    overwrite: Overwrite = False,
) -> None:
    """Write the difference between two checkpoints as a patch."""
    from unlearnkit.models.checkpoint import REQUESTS, applied_requests, read_checkpoint
    from unlearnkit.unlearning import Patch

    (old, known), (new, found) = read_checkpoint(before), read_checkpoint(after)
    requests = [one for one in applied_requests(found) if one not in applied_requests(known)]
    made = Patch.between(old, new, keep_old=keep_old, about={REQUESTS: requests} if requests else None)
    _save(made, output, overwrite=overwrite)


def apply(patch: PatchFile, checkpoint: Checkpoint, output: Output, overwrite: Overwrite = False) -> None:
    """Apply a patch to the checkpoint that it was made for; any other is refused."""
    _change("apply", patch, checkpoint, output, overwrite=overwrite)


def revert(patch: PatchFile, checkpoint: Checkpoint, output: Output, overwrite: Overwrite = False) -> None:
    """Undo a patch; the result is bit-identical to the checkpoint before it."""
    _change("revert", patch, checkpoint, output, overwrite=overwrite)


def compose(
    first: PatchFile,
    second: PatchFile,
    checkpoint: Annotated[Path, typer.Argument(help="The model that the first patch was made for.")],
    output: Output,
    overwrite: Overwrite = False,
) -> None:
    """Combine two patches into one."""
    from unlearnkit.models.checkpoint import read_checkpoint
    from unlearnkit.unlearning import Patch

    made = Patch.load(first).then(Patch.load(second), read_checkpoint(checkpoint)[0])
    _save(made, output, overwrite=overwrite)


def inspect(patch: PatchFile) -> None:
    """Show what a patch holds, as JSON."""
    from unlearnkit.unlearning import Patch

    out.print_json(json.dumps(Patch.load(patch).inspect()))


def _change(direction: str, patch: Path, checkpoint: Path, output: Path, *, overwrite: bool) -> None:
    from unlearnkit.models.checkpoint import REQUESTS, applied_requests, read_checkpoint, write_checkpoint
    from unlearnkit.unlearning import Patch

    loaded = Patch.load(patch)
    state, metadata = read_checkpoint(checkpoint)
    changed, theirs = getattr(loaded, direction)(state), _requests(loaded.about)
    requests = [one for one in applied_requests(metadata) if one not in theirs]
    requests += theirs if direction == "apply" else []
    metadata = {key: value for key, value in metadata.items() if key != REQUESTS}
    metadata |= {REQUESTS: json.dumps(requests)} if requests else {}
    write_checkpoint(changed, _free(output, overwrite=overwrite), metadata)
    line(f"{output}: written")


def _requests(about: Mapping[str, Any]) -> list[str]:
    """List the forget sets of a patch, and of those that it was composed of."""
    from unlearnkit.models.checkpoint import REQUESTS

    parts = [about[part] for part in ("first", "then") if part in about]
    return [*about.get(REQUESTS, []), *(one for part in parts for one in _requests(part))]


def _save(patch: "Patch", output: Path, *, overwrite: bool) -> None:
    patch.save(_free(output, overwrite=overwrite))
    line(f"{output}: {patch.changed} weights in {len(patch.tensors)} tensors")


def _free(path: Path, *, overwrite: bool) -> Path:
    if path.exists() and not overwrite:
        raise StoreError(f"{path} already exists: choose another file, or pass --overwrite")
    return path


for command in (diff, apply, revert, compose, inspect):
    app.command()(with_shared_options(command))
