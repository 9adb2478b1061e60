"""The command ``unlearnkit``: each of its commands is a function in `unlearnkit.commands`."""

from typing import Annotated

import typer

from unlearnkit import __version__
from unlearnkit.commands.compare import compare
from unlearnkit.commands.demo import demo
from unlearnkit.commands.forget import forget
from unlearnkit.commands.installed import methods, plugins
from unlearnkit.commands.ledger import ledger, purge, rollback, verify_receipts
from unlearnkit.commands.new_plugin import new_plugin
from unlearnkit.commands.patch import app as patch
from unlearnkit.commands.report import report
from unlearnkit.commands.run import run
from unlearnkit.commands.train import train
from unlearnkit.commands.tune import tune
from unlearnkit.console import out

app = typer.Typer(
    name="unlearnkit",
    help="Make a trained network forget, and say honestly what the edit did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (
    run,
    tune,
    compare,
    report,
    train,
    demo,
    ledger,
    forget,
    verify_receipts,
    rollback,
    purge,
    methods,
    plugins,
    new_plugin,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(patch)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        out.print(f"unlearnkit {__version__}", highlight=False)
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app()
