"""``unlearnkit methods``, ``plugins`` and ``new-plugin``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unlearnkit.cli.console import line, print_plain, print_table
from unlearnkit.cli.options import installed_names
from unlearnkit.plugins.scaffold import new_plugin as write_plugin
from unlearnkit.utils.errors import UnknownMethodError, nearest

if TYPE_CHECKING:
    from unlearnkit.plugins.manager import Provided

_KINDS = {"unlearner": "methods", "estimator": "estimators", "metric": "metrics"}


def methods(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Show this one in full.", autocompletion=installed_names)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the installed methods, estimators and metrics, or show one of them with its options and a TOML snippet."""
    from unlearnkit.plugins.manager import default_manager
    from unlearnkit.reporting import details_text, method_details, method_kind, method_table

    manager = default_manager()
    known = [(kind, entry) for kind in _KINDS for entry in manager.provided(kind)]
    if name:
        chosen = [(kind, entry) for kind, entry in known if entry.name == name]
        if not chosen:
            hint = nearest(name, [entry.name for _, entry in known])
            raise UnknownMethodError(f"expected an installed method, estimator or metric, saw {name!r}{hint}")
        known = chosen
    if as_json:
        print_plain(json.dumps([method_details(*one) for one in known], indent=2, ensure_ascii=False))
    elif name:
        print_plain("\n\n".join(details_text(method_details(*one)) for one in known))
    else:
        groups: dict[str, list[Provided]] = {}
        for kind, entry in known:
            title = f"methods: {method_kind(entry.cls)}" if kind == "unlearner" else _KINDS[kind]
            groups.setdefault(title, []).append(entry)
        for title, entries in groups.items():
            print_table(method_table(title, entries))
        line("`unlearnkit methods NAME` shows one in full, with its options.")
    if manager.problems() and not as_json:
        line("Some plugins cannot be used: `unlearnkit plugins` says why.")


def plugins() -> None:
    """List the installed plugins and what each offers; broken, blocked and empty ones with the reason."""
    from unlearnkit.plugins.manager import default_manager
    from unlearnkit.reporting import plugin_table

    manager = default_manager()
    found = manager.plugins()
    print_table(plugin_table(found, manager.problems(), {one.name: manager.offers(one.name) for one in found}))
    for kernel, origin in manager.kernels():
        line(f"kernel {kernel.name} for {kernel.layer} layers: {origin}")


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, as in my-method.")],
    kind: Annotated[
        Literal["elementwise", "training", "estimator", "metric", "kernel", "objective"],
        typer.Option("--kind", "-k", help="What it offers."),
    ] = "elementwise",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create it in.")] = Path(),
) -> None:
    """Create a plugin: a distribution that installs, runs and passes its tests as written."""
    folder = write_plugin(name, kind=kind, output=output)
    line(f"{folder}: written", soft_wrap=True)
    line(f"next: pip install -e '{folder}[test]' && pytest {folder}", soft_wrap=True)
