"""What the command line shows: progress bars, warnings as lines, errors without tracebacks."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from typing_extensions import override

from unlearnkit.utils.errors import ConfigurationError, UnlearnKitError, UnlearnKitWarning, visible
from unlearnkit.utils.progress import Progress, silent

if TYPE_CHECKING:
    import rich.progress
    from rich.table import Column, Table

FAULT = 2  # exit code of an error that the user can fix
NOTHING_EDITED = 3  # exit code of a search that edited nothing
_FOLDED = 10  # characters that stay together where a column may break words
INTERRUPTED = 130  # exit code after Ctrl-C, as in shells


@final
class _Console(Console):
    """Goes on in silence when nobody reads any more, as after ``| head``: the work is finished all the same."""

    @override
    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


out = _Console(markup=False)  # "[b]" in a label or a name is text
err = _Console(stderr=True, markup=False)


@contextmanager
def bars(*, quiet: bool = False) -> Iterator[Progress]:
    """Show progress bars on stderr while the block runs."""
    if quiet or not err.is_terminal:
        yield silent
        return
    with _bars("{task.description}") as shown:
        yield lambda items, what, total: shown.track(items, total=total, description=what)


def _bars(before: str, after: str = "", *, disable: bool = False) -> "rich.progress.Progress":
    from rich import progress

    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn())
    return progress.Progress(
        before, *columns, progress.TimeRemainingColumn(), after, console=err, transient=True, disable=disable
    )


@contextmanager
def together(device: str, *, quiet: bool = False) -> Iterator[tuple[bool, Progress]]:
    """Join the process group when ``torchrun`` started this process; only rank 0 shows progress and warnings."""
    from unlearnkit.distributed.collectives import joined

    with joined(device) as ranks, bars(quiet=quiet or ranks.rank > 0) as progress, warnings.catch_warnings():
        if ranks.rank > 0:
            warnings.simplefilter("ignore", UnlearnKitWarning)
        yield ranks.rank == 0, progress


def one_process(command: str) -> None:
    """Refuse to work in several processes that ``torchrun`` has started: each would do the same."""
    from unlearnkit.distributed.collectives import world_size

    if world_size() > 1:
        raise ConfigurationError(
            f"`unlearnkit {command}` works in one process: expected no torchrun, saw {world_size()} processes that it "
            "started: only `run`, `tune` and `compare` share out their work"
        )


@contextmanager
def counting(total: int, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Show one bar for many jobs, several running at a time, with the names of the running ones."""
    running: list[str] = []
    with _bars("{task.percentage:>3.0f} %", "{task.description}", disable=quiet or not err.is_terminal) as shown:
        bar = shown.add_task("", total=total)

        def show(kind: str, name: str, *, counts: bool = True) -> None:
            if kind == "started":
                running.append(name)
            elif name in running:
                running.remove(name)
            more = f" and {len(running) - 1} more" if len(running) > 1 else ""
            advance = int(counts and kind != "started")
            shown.update(bar, advance=advance, description=f"{running[0]}{more}" if running else "")

        yield show


@contextmanager
def clear_errors(*, traceback: bool = False) -> Iterator[None]:
    """Turn errors that a user can fix into one line and exit code 2, and warnings into lines, each once."""
    said = set[str]()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            say("warning", str(message), style="yellow")
        said.add(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("always", UnlearnKitWarning)
        try:
            yield
        except (UnlearnKitError, OSError, ModuleNotFoundError) as error:
            message = _message(error)
            if traceback or not message:
                raise
            say("error", *message, style="bold red")
            sys.exit(FAULT)
        except KeyboardInterrupt:
            say("interrupted", "nothing was left half-written", style="bold red")
            sys.exit(INTERRUPTED)


def print_table(table: "Table") -> None:
    """Print a table; where it is wider than the screen, each row as a block of its own, so that nothing is cut off."""
    borders = len(table.columns) + 1 if table.pad_edge else 0
    if sum(map(_width, table.columns)) + borders <= out.width:
        out.print(table)
        return
    if table.title:
        line(str(table.title))
    columns = [(str(column.header), [str(cell) for cell in column.cells]) for column in table.columns]
    for row in range(table.row_count):
        cells = [(header, texts[row]) for header, texts in columns if texts[row]]
        (_, first), *rest = cells
        line(first)
        for header, cell in rest:
            line(f"  {header}: {cell}" if header else f"  {cell}")


def _width(column: "Column") -> int:
    """The narrowest that a column can be without cutting anything off, with the space beside it."""
    texts = [str(text) for text in (column.header, *column.cells)]
    parts = (part for text in texts for part in (text.splitlines() if column.no_wrap else text.split()))
    needed = max(map(cell_len, parts), default=0)
    return (min(needed, _FOLDED) if column.overflow == "fold" else needed) + 2


def line(text: str, *, soft_wrap: bool = False) -> None:
    """Print plain text; ``soft_wrap`` leaves wrapping to the terminal, so that paths can be copied."""
    # All lines but the first are indented: what a user typed cannot look like a line of its own.
    shown = "\n  ".join(visible(part) for part in text.split("\n"))
    out.print(shown, highlight=False, soft_wrap=soft_wrap)


def print_plain(text: str) -> None:
    """Print text for programs, or to be copied: not wrapped and not coloured."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def say(kind: str, *texts: str, style: str) -> None:
    """Print an error with its notes, or a warning, as one line on stderr."""
    one_line = "; ".join(" ".join(map(str.strip, text.splitlines())) for text in texts)
    # In one call: below a text without its end of line, progress bars are drawn over it.
    err.print(Text.assemble((f"{kind}: ", style), visible(one_line)), soft_wrap=True)


def _message(error: Exception) -> list[str]:
    """Say what a user can do about an error, and its notes; nothing for one that is passed on."""
    if isinstance(error, UnlearnKitError):
        return [str(error), *getattr(error, "__notes__", [])]
    if isinstance(error, ModuleNotFoundError):
        known = error.name in {"torch", "torchvision"}
        return [f"this command needs PyTorch: pip install {error.name}"] if known else []
    if isinstance(error, BrokenPipeError):  # the reader of the pipe is closed: click exits quietly
        return []
    return [f"the system refused: {error}"]
