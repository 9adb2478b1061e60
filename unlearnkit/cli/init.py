"""``unlearnkit init`` and ``check``: begin a configuration, and look for mistakes in one."""

import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import typer

from unlearnkit.cli.console import line, print_plain
from unlearnkit.cli.options import Settings, load
from unlearnkit.utils.errors import ConfigurationError, StoreError

_RESNET = 'factory = "unlearnkit.models:resnet18_classifier"\n# options = { pretrained = true }   # downloads weights'
_START: dict[str, dict[str, str]] = {
    "digits": {
        "about": "scikit-learn's 1,797 digits; nothing is downloaded",
        "model": 'factory = "unlearnkit.models:small_cnn"',
        "data": 'name = "digits"',
        "forget": "classes = [3]",
        "training": "epochs = 20\nlearning_rate = 3e-3",
    },
    "cifar100": {
        "about": "CIFAR-100 in its 20 coarse classes, forgetting the rockets",
        "model": _RESNET,
        "data": 'name = "cifar100"\noptions = { root = "data", download = true, image_size = 224, on_device = true }',
        "forget": 'fine = ["rocket"]',
        "training": "epochs = 5\nlearning_rate = 1e-4\nbatch_size = 256",
    },
    "image-folder": {
        "about": "images in images/train/CLASS/ and images/test/CLASS/",
        "model": _RESNET,
        "data": 'name = "image-folder"\noptions = { root = "images", image_size = 224 }',
        "forget": 'classes = ["NAME OF A CLASS"]',
        "training": "epochs = 10\nlearning_rate = 1e-4",
    },
    "own": {
        "about": "your own model and data",
        "model": 'factory = "my_project:model"   # a function that returns a torch.nn.Module\n# options = {}',
        "data": 'factory = "my_project:data"    # a function that returns a DataBundle\n# options = {}',
        "forget": 'indices_file = "forget.txt"  # one index of the training set per line',
        "training": "epochs = 10\nlearning_rate = 1e-3",
    },
}


def init(
    data: Annotated[
        Literal["digits", "cifar100", "image-folder", "own"], typer.Argument(help="Which data.")
    ] = "digits",
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("experiment.toml"),
) -> None:
    """Write a configuration with comments, to begin with."""
    if output.exists():
        raise StoreError(f"{output} already exists: choose another file with --output")
    text = files("unlearnkit.cli").joinpath("templates", "experiment.toml.txt").read_text(encoding="utf-8")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(Template(text).substitute(_START[data], file=output), encoding="utf-8")
    line(f"{output}: written", soft_wrap=True)
    line(f"next: unlearnkit check {output}", soft_wrap=True)


def check(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="The experiment; see docs/reference/configuration.md.")
    ] = None,
    settings: Settings = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of all configurations.")] = False,
) -> None:
    """Look for mistakes in a configuration, without reading data or making a model."""
    from unlearnkit.experiments.check import check_config
    from unlearnkit.experiments.schema import config_schema

    if schema:
        print_plain(json.dumps(config_schema(), indent=2, ensure_ascii=False))
        return
    if config is None:
        raise ConfigurationError("expected a configuration, saw none: name a TOML file, or give --schema")
    chosen = load(config, settings)
    problems, remarks = check_config(chosen)
    for remark in remarks:
        line(f"note: {remark}", soft_wrap=True)
    if problems:
        raise ConfigurationError(f"{config}: " + "; ".join(problems))
    line(f"{config}: no mistakes found", soft_wrap=True)
