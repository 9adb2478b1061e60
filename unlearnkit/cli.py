"""The command ``unlearnkit``."""

from pathlib import Path
from typing import Annotated

import attrs
import typer
from rich.markup import escape

from unlearnkit import __version__
from unlearnkit.config import Config, load_config
from unlearnkit.console import bars, clear_errors, out
from unlearnkit.plugins import default_manager
from unlearnkit.reporting import method_table, plugin_table, run_table, tensor_table, tuning_table
from unlearnkit.scaffold import new_plugin as write_plugin
from unlearnkit.suggest import nearest

app = typer.Typer(
    name="unlearnkit",
    help="Make a trained network forget, and say honestly what the edit did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


@app.command()
def run(
    config: ConfigPath,
    settings: Settings = None,
    method: Methods = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be edited; write nothing.")] = False,
    overwrite: Overwrite = False,
    again: Again = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Make a trained model forget: importances, edits, evaluation, one folder of results per method."""
    from unlearnkit.runner import run as run_methods  # noqa: PLC0415 - torchvision and scikit-learn take seconds

    with clear_errors(traceback=traceback):
        chosen = _only(load_config(config, settings or []), method or [])
        records = []
        with bars(quiet=quiet) as progress:
            for record in run_methods(chosen, dry_run=dry_run, overwrite=overwrite, again=again, progress=progress):
                records.append(record)
                if dry_run:
                    out.print(tensor_table(record.report))
        if dry_run:
            out.print("dry run: nothing was written")
            return
        out.print(run_table(records))
        for record in records:
            out.print(escape(record.sentence()))
        out.print(f"results: {escape(chosen.output)}/LABEL/model.safetensors and report.json")


@app.command()
def tune(
    config: ConfigPath,
    settings: Settings = None,
    method: Annotated[str, typer.Option("--method", "-m", help="Tune this method (its label).")] = "",
    overwrite: Overwrite = False,
    again: Again = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Find the right edit: importances once, many edits, chosen on validation data within a budget."""
    from unlearnkit.tuning import tune as tune_method  # noqa: PLC0415 - torchvision and scikit-learn take seconds

    with clear_errors(traceback=traceback):
        chosen = load_config(config, settings or [])
        if method:
            chosen = attrs.evolve(chosen, tuning=attrs.evolve(chosen.tuning, method=method))
        with bars(quiet=quiet) as progress:
            tuned = tune_method(chosen, overwrite=overwrite, again=again, progress=progress)
        out.print(tuning_table(tuned.tuning))
        out.print(escape(tuned.tuning.sentence()), highlight=False)
        if tuned.tuning.chosen is not None:
            out.print(run_table([tuned.record]))
        out.print(f"results: {escape(str(tuned.folder))}", highlight=False)
    if tuned.tuning.chosen is None:
        raise typer.Exit(1)


@app.command()
def train(
    config: ConfigPath,
    settings: Settings = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Train the original model of an experiment, and write its checkpoint."""
    from unlearnkit.trainer import train_original  # noqa: PLC0415 - torchvision and scikit-learn take seconds

    with clear_errors(traceback=traceback):
        chosen = load_config(config, settings or [])
        with bars(quiet=quiet) as progress:
            record = train_original(chosen, overwrite=overwrite, progress=progress)
        for number, epoch in enumerate(record["epochs"], start=1):
            out.print(
                f"epoch {number}: loss {epoch['loss']:.4f}, accuracy {epoch['accuracy']:.4f}, {epoch['seconds']:.1f} s"
            )
        out.print(f"test: loss {record['test']['loss']:.4f}, accuracy {record['test']['accuracy']:.4f}")
        out.print(f"checkpoint: {escape(chosen.model.checkpoint)}")


@app.command()
def demo(
    forget: Annotated[int, typer.Option(min=0, max=9, help="The digit to forget.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of training.")] = 20,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Train on real digits, forget one with every method, compare with retraining; under a minute, no download."""
    from unlearnkit.demo import demo as run_demo  # noqa: PLC0415 - torchvision and scikit-learn take seconds

    with clear_errors(traceback=traceback):
        with bars(quiet=quiet) as progress:
            result = run_demo(forget=forget, epochs=epochs, seed=seed, device=device, progress=progress)
        out.print(result.table())
        out.print(escape(result.lesson()), highlight=False)


@app.command()
def methods(traceback: Traceback = False) -> None:
    """List the installed methods, estimators and metrics with their options."""
    with clear_errors(traceback=traceback):
        manager = default_manager()
        for title, kind in (("methods", "unlearner"), ("estimators", "estimator"), ("metrics", "metric")):
            entries = manager.provided(kind)
            if entries:
                out.print(method_table(title, entries))
        if manager.problems():
            out.print("Some plugins cannot be used: `unlearnkit plugins` says why.")


@app.command()
def plugins(traceback: Traceback = False) -> None:
    """List the installed plugins; broken and blocked ones with the reason."""
    with clear_errors(traceback=traceback):
        manager = default_manager()
        out.print(plugin_table(manager.plugins(), manager.problems()))


@app.command(name="new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is asked for by, as my-method.")],
    kind: Annotated[
        str, typer.Option("--kind", "-k", help="elementwise, gradient, estimator or metric.")
    ] = "elementwise",
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write it into.")] = Path(),
    traceback: Traceback = False,
) -> None:
    """Write a new plugin: a distribution that installs, runs and passes its tests as it is."""
    with clear_errors(traceback=traceback):
        folder = write_plugin(name, kind=kind, output=output)
        out.print(f"{escape(str(folder))}: written", highlight=False, soft_wrap=True)
        out.print(escape(f"next: pip install -e '{folder}[test]' && pytest {folder}"), highlight=False, soft_wrap=True)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        out.print(f"unlearnkit {__version__}", highlight=False)
        raise typer.Exit


def _only(config: Config, labels: list[str]) -> Config:
    """Keep the methods with the given labels."""
    known = {method.label: method for method in config.method}
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise typer.BadParameter(f"the configuration has no method {unknown[0]!r}{nearest(unknown[0], known)}")
    return attrs.evolve(config, method=tuple(known[label] for label in labels)) if labels else config


def main() -> None:
    """Run the command line."""
    app()
