"""What commands share: options, the display of errors, and loading the configuration."""

import functools
import inspect
import json
import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearnkit.cli.console import clear_errors
from unlearnkit.plugins.entry_points import GROUP
from unlearnkit.utils.errors import CONTROL, ConfigurationError, nearest, visible

if TYPE_CHECKING:
    from unlearnkit.experiments import Config

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG.toml", help="The experiment; see docs/reference/configuration.md.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a setting, as in method.ssd.options.alpha=5; repeatable."
    ),
]


def labels(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the label of a method of the configuration that was named before."""
    try:
        methods = tomllib.loads(Path(context.params["config"]).read_text(encoding="utf-8"))["method"]
        found = [str(method.get("label", method["name"])) for method in methods]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    return [label for label in found if label.startswith(incomplete)]


def installed_names(incomplete: str) -> list[str]:
    """Complete the name of a method, without importing it: plugins are mostly called like what they provide."""
    names = {point.name for point in entry_points(group=GROUP)}
    return sorted(name for name in names if name.startswith(incomplete))


def devices(incomplete: str) -> list[str]:
    return [name for name in ("auto", "cpu", "cuda", "mps") if name.startswith(incomplete)]


Methods = Annotated[
    list[str] | None,
    typer.Option("--method", "-m", help="Run only the method with this label; repeatable.", autocompletion=labels),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]
Again = Annotated[bool, typer.Option("--again", help="Allow a forget set that was already applied to this checkpoint.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bars.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show Python's traceback of an error.")]


_SHORTCUTS = {
    "output": Annotated[str | None, typer.Option("--output", "-o", help="Folder of the results.")],
    "device": Annotated[
        str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …", autocompletion=devices)
    ],
    "seed": Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the edit.")],
}
"""Settings that have an option of their own beside ``--set``."""


def with_shared_options(command: Callable[..., None], *, without: Sequence[str] = ()) -> Callable[..., None]:
    """Add ``--traceback``, and to commands with ``--set`` also ``--output``, ``--device`` and ``--seed``.

    ``without`` names those that would have no effect. Without ``--traceback``, an error that a user can fix is shown as
    one message.
    """
    signature = inspect.signature(command)
    shortcuts = {name: kind for name, kind in _SHORTCUTS.items() if name not in without}
    added = shortcuts if "settings" in signature.parameters else {}

    @functools.wraps(command)
    def run(*, traceback: bool, **options: Any) -> None:
        with clear_errors(traceback=traceback):
            for name, value in options.items():
                _refuse_control_characters(name, value)
            given = {name: options.pop(name) for name in added}
            if added:
                set_ = [
                    f"{name}={json.dumps(value, ensure_ascii=False)}"
                    for name, value in given.items()
                    if value is not None
                ]
                options["settings"] = [*(options["settings"] or []), *set_]
            command(**options)

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in added.items()
    ]
    last = inspect.Parameter("traceback", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Traceback)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *more, last]
    )
    return run


def _refuse_control_characters(name: str, value: Any) -> None:
    for text in map(str, value if isinstance(value, list) else [value]):
        if visible(text, CONTROL) != text:
            raise ConfigurationError(f"{name}: expected text without control characters, saw {visible(text)!r}")


def load(path: Path, settings: Sequence[str] | None, labels: Sequence[str] | None = None) -> "Config":
    """Read a configuration, override settings, and keep only the methods with the given labels."""
    import attrs

    from unlearnkit.experiments import load_config

    config = load_config(path, settings or [])
    known = {method.label: method for method in config.method}
    for label in labels or []:
        if label not in known:
            raise ConfigurationError(f"{path}: no method has the label {label!r}{nearest(label, known)}")
    return attrs.evolve(config, method=tuple(known[label] for label in labels)) if labels else config
