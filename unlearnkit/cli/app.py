"""The command ``unlearnkit``: each of its commands is a function in `unlearnkit.cli`."""

from typing import Annotated

import typer

from unlearnkit import __version__
from unlearnkit.cli.console import line
from unlearnkit.cli.deletion import forget, ledger, purge, rollback, verify_receipts
from unlearnkit.cli.experiments import compare, demo, recommend, report, run, train, tune
from unlearnkit.cli.init import check, init
from unlearnkit.cli.options import with_shared_options
from unlearnkit.cli.patch import app as patch
from unlearnkit.cli.plugins import methods, new_plugin, plugins

app = typer.Typer(
    name="unlearnkit",
    help="Make a trained network forget, and say honestly what the edit did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The training has its own seed, and [comparison] lists all of its seeds.
WITHOUT_EFFECT = {train: ("output", "seed"), compare: ("seed",)}

experiments = (init, check, train, run, tune, recommend, compare, report, demo)
for command in (*experiments, ledger, forget, verify_receipts, rollback, purge, methods, plugins, new_plugin):
    app.command()(with_shared_options(command, without=WITHOUT_EFFECT.get(command, ())))
app.add_typer(patch)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        line(f"unlearnkit {__version__}")
        raise typer.Exit
