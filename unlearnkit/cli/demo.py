"""``unlearnkit demo``."""

from typing import Annotated

import typer

from unlearnkit.cli.console import bars, clear_errors, line, out
from unlearnkit.cli.options import Quiet, Traceback


def demo(
    forget: Annotated[int, typer.Option(min=0, max=9, help="The digit to forget.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Train on real digits, forget one with several methods, compare with retraining; under a minute, no download."""
    with clear_errors(traceback=traceback):
        from unlearnkit.experiments import demo as run_demo

        with bars(quiet=quiet) as progress:
            result = run_demo(forget=forget, epochs=epochs, seed=seed, device=device, progress=progress)
        out.print(result.table())
        line(result.lesson())
