"""What the command line shows: progress bars, warnings as lines, errors without tracebacks."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from unlearnkit.utils.errors import ConfigurationError, UnlearnKitError, UnlearnKitWarning
from unlearnkit.utils.progress import Progress, silent

FAULT = 2
"""Exit code of an error that the user can mend."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

out = Console()
err = Console(stderr=True)


@contextmanager
def bars(*, quiet: bool = False) -> Iterator[Progress]:
    """Show progress bars on the error stream while the block runs."""
    if quiet:
        yield silent
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=err, transient=True) as shown:

        def progress(items: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:
            yield from shown.track(items, total=total, description=what)

        yield progress


@contextmanager
def together(device: str, *, quiet: bool = False) -> Iterator[tuple[bool, Progress]]:
    """Join the processes that ``torchrun`` has started, where it has; only rank 0 shows progress."""
    from unlearnkit.distributed.ranks import joined  # noqa: PLC0415 - torch takes seconds

    with joined(device) as ranks, bars(quiet=quiet or ranks.rank > 0) as progress, warnings.catch_warnings():
        if ranks.rank > 0:
            warnings.simplefilter("ignore", UnlearnKitWarning)
        yield ranks.rank == 0, progress


def one_process(command: str) -> None:
    """Refuse to work in several processes that ``torchrun`` has started: each would do the same."""
    from unlearnkit.distributed.ranks import world_size  # noqa: PLC0415 - torch takes seconds

    if world_size() > 1:
        raise ConfigurationError(
            f"`unlearnkit {command}` works in one process: expected no torchrun, saw {world_size()} processes that it "
            "started: only `run`, `tune` and `compare` share out their work"
        )


@contextmanager
def counting(total: int, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Show one bar for many pieces of work, several at a time, with the names of the running ones."""
    running: list[str] = []
    columns = (TextColumn("{task.percentage:>3.0f} %"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    names = TextColumn("{task.description}", markup=False)
    with Bars(*columns, TimeRemainingColumn(), names, console=err, transient=True, disable=quiet) as shown:
        bar = shown.add_task("", total=total)

        def tell(kind: str, name: str, *, counts: bool = True) -> None:
            if kind == "started":
                running.append(name)
            elif name in running:
                running.remove(name)
            more = f" and {len(running) - 1} more" if len(running) > 1 else ""
            advance = int(counts and kind != "started")
            shown.update(bar, advance=advance, description=f"{running[0]}{more}" if running else "")

        yield tell


@contextmanager
def clear_errors(*, traceback: bool = False) -> Iterator[None]:
    """Turn errors that a user can mend into one message and exit code 2, and warnings into lines."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("always", UnlearnKitWarning)
        try:
            yield
        except UnlearnKitError as error:
            if traceback:
                raise
            say("error", "\n".join([str(error), *getattr(error, "__notes__", [])]), style="bold red")
            sys.exit(FAULT)
        except BrokenPipeError:
            raise  # the reader of a pipe has gone: click ends quietly
        except OSError as error:
            if traceback:
                raise
            say("error", f"the system refused: {error}", style="bold red")
            sys.exit(FAULT)
        except KeyboardInterrupt:
            say("interrupted", "nothing was left half-written", style="bold red")
            sys.exit(INTERRUPTED)


def say(kind: str, text: str, *, style: str) -> None:
    """Print one message on the error stream."""
    err.print(f"[{style}]{kind}:[/] ", end="")
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    del category
    say("warning", str(message), style="yellow")
