"""What commands share: options, the display of errors, and loading the configuration."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearnkit.cli.console import clear_errors
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
Methods = Annotated[
    list[str] | None, typer.Option("--method", "-m", help="Run only the method with this label; repeatable.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]
Again = Annotated[bool, typer.Option("--again", help="Allow a forget set that was already applied to this checkpoint.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bars.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show Python's traceback of an error.")]


def with_traceback(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option ``--traceback``; without it, an error that a user can fix is shown as one message."""

    @functools.wraps(command)
    def run(*, traceback: bool, **options: Any) -> None:
        with clear_errors(traceback=traceback):
            for name, value in options.items():
                _refuse_control_characters(name, value)
            command(**options)

    signature = inspect.signature(command)
    last = inspect.Parameter("traceback", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Traceback)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), last])  # type: ignore[attr-defined]
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
