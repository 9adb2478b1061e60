"""``unlearnkit patch``: an edit as a file of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from torch import Tensor

from unlearnkit.cli.console import clear_errors, out
from unlearnkit.cli.options import Overwrite, Traceback
from unlearnkit.models.checkpoint import read_checkpoint, write_checkpoint
from unlearnkit.unlearning.patch import Patch
from unlearnkit.utils.errors import StoreError

app = typer.Typer(
    name="patch",
    help="An edit as a file of its own: make, apply, revert, compose, inspect.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Checkpoint = Annotated[Path, typer.Argument(help="A model's weights, safetensors.")]
PatchFile = Annotated[Path, typer.Argument(help="A patch.")]
Output = Annotated[Path, typer.Argument(help="Where to write.")]


@app.command()
def diff(
    before: Checkpoint,
    after: Checkpoint,
    output: Output,
    keep_old: Annotated[bool, typer.Option(help="Keep the old values, so that it can be reverted.")] = True,
    overwrite: Overwrite = False,
    traceback: Traceback = False,
) -> None:
    """Write what turns one checkpoint into another."""
    with clear_errors(traceback=traceback):
        patch = Patch.between(read_checkpoint(before)[0], read_checkpoint(after)[0], keep_old=keep_old)
        patch.save(_free(output, overwrite=overwrite))
        out.print(f"{escape(str(output))}: {patch.changed} weights in {len(patch.tensors)} tensors", highlight=False)


@app.command()
def apply(
    patch: PatchFile, checkpoint: Checkpoint, output: Output, overwrite: Overwrite = False, traceback: Traceback = False
) -> None:
    """Edit a checkpoint; one that the patch was not made for is refused."""
    with clear_errors(traceback=traceback):
        _changed(Patch.load(patch).apply, checkpoint, output, overwrite=overwrite)


@app.command()
def revert(
    patch: PatchFile, checkpoint: Checkpoint, output: Output, overwrite: Overwrite = False, traceback: Traceback = False
) -> None:
    """Take the edit back, bit by bit."""
    with clear_errors(traceback=traceback):
        _changed(Patch.load(patch).revert, checkpoint, output, overwrite=overwrite)


@app.command()
def compose(
    first: PatchFile,
    second: PatchFile,
    checkpoint: Annotated[Path, typer.Argument(help="The model that the first patch is made for.")],
    output: Output,
    overwrite: Overwrite = False,
    traceback: Traceback = False,
) -> None:
    """Make one patch of two."""
    with clear_errors(traceback=traceback):
        both = Patch.load(first).then(Patch.load(second), read_checkpoint(checkpoint)[0])
        both.save(_free(output, overwrite=overwrite))
        out.print(f"{escape(str(output))}: {both.changed} weights in {len(both.tensors)} tensors", highlight=False)


@app.command()
def inspect(patch: PatchFile, traceback: Traceback = False) -> None:
    """Show what a patch holds, as JSON."""
    with clear_errors(traceback=traceback):
        out.print_json(json.dumps(Patch.load(patch).inspect()))


def _changed(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], checkpoint: Path, output: Path, *, overwrite: bool
) -> None:
    state, metadata = read_checkpoint(checkpoint)
    write_checkpoint(change(state), _free(output, overwrite=overwrite), metadata)
    out.print(f"{escape(str(output))}: written", highlight=False)


def _free(path: Path, *, overwrite: bool) -> Path:
    if path.exists() and not overwrite:
        raise StoreError(f"{path} is there already: choose another file, or overwrite it")
    return path
