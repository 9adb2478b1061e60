"""Arguments and options that commands share."""

from pathlib import Path
from typing import Annotated

import attrs
import typer
from typer import BadParameter

from unlearnkit.experiments.config import Config
from unlearnkit.utils.errors import nearest

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG.toml", help="The experiment; see docs/reference/configuration.md.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a setting, as method.ssd.options.alpha=5; repeatable."
    ),
]
Methods = Annotated[
    list[str] | None, typer.Option("--method", "-m", help="Run only this method (its label); repeatable.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]
Again = Annotated[
    bool, typer.Option("--again", help="Apply a forget set to a checkpoint that it was applied to already.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bars.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show Python's traceback of an error.")]


def only(config: Config, labels: list[str]) -> Config:
    """Keep the methods with the given labels."""
    known = {method.label: method for method in config.method}
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise BadParameter(f"the configuration has no method {unknown[0]!r}{nearest(unknown[0], known)}")
    return attrs.evolve(config, method=tuple(known[label] for label in labels)) if labels else config
