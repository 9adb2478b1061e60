"""``unlearnkit methods``, ``plugins`` and ``new-plugin``."""

from pathlib import Path
from typing import Annotated

import typer

from unlearnkit.cli.console import line, out
from unlearnkit.plugins.scaffold import KINDS
from unlearnkit.plugins.scaffold import new_plugin as write_plugin


def methods() -> None:
    """List the installed methods, estimators and metrics with their options."""
    from unlearnkit.plugins.manager import default_manager
    from unlearnkit.reporting import method_table

    manager = default_manager()
    for title, kind in (("methods", "unlearner"), ("estimators", "estimator"), ("metrics", "metric")):
        entries = manager.provided(kind)
        if entries:
            out.print(method_table(title, entries))
    if manager.problems():
        line("Some plugins cannot be used: `unlearnkit plugins` says why.")


def plugins() -> None:
    """List the installed plugins and what each offers; broken, blocked and empty ones with the reason."""
    from unlearnkit.plugins.manager import default_manager
    from unlearnkit.reporting import plugin_table

    manager = default_manager()
    found = manager.plugins()
    out.print(plugin_table(found, manager.problems(), {one.name: manager.offers(one.name) for one in found}))
    for kernel, origin in manager.kernels():
        line(f"kernel {kernel.name} for {kernel.layer} layers: {origin}")


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, as in my-method.")],
    kind: Annotated[str, typer.Option("--kind", "-k", help=f"One of {', '.join(KINDS)}.")] = "elementwise",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create it in.")] = Path(),
) -> None:
    """Create a plugin: a distribution that installs, runs and passes its tests as written."""
    folder = write_plugin(name, kind=kind, output=output)
    line(f"{folder}: written", soft_wrap=True)
    line(f"next: pip install -e '{folder}[test]' && pytest {folder}", soft_wrap=True)
