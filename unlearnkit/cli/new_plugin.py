"""``unlearnkit new-plugin``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from unlearnkit.cli.console import clear_errors, out
from unlearnkit.cli.options import Traceback
from unlearnkit.plugins.scaffold import KINDS
from unlearnkit.plugins.scaffold import new_plugin as write_plugin


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, as in my-method.")],
    kind: Annotated[str, typer.Option("--kind", "-k", help=f"One of {', '.join(KINDS)}.")] = "elementwise",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create it in.")] = Path(),
    traceback: Traceback = False,
) -> None:
    """Create a plugin: a distribution that installs, runs and passes its tests as written."""
    with clear_errors(traceback=traceback):
        folder = write_plugin(name, kind=kind, output=output)
        out.print(f"{escape(str(folder))}: written", highlight=False, soft_wrap=True)
        out.print(escape(f"next: pip install -e '{folder}[test]' && pytest {folder}"), highlight=False, soft_wrap=True)
