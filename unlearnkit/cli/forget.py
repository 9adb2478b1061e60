"""``unlearnkit forget``: deletion requests."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from unlearnkit.cli.console import out
from unlearnkit.cli.ledger import deletion
from unlearnkit.cli.options import ConfigPath, Quiet, Settings, Traceback


def forget(
    config: ConfigPath,
    settings: Settings = None,
    request: Annotated[str, typer.Option("--request", "-r", help="Name of the request, such as a ticket number.")] = "",
    samples: Annotated[
        Path | None, typer.Option(help="A text file with the index of one training sample on each line.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option("--group", "-g", help="Forget every sample of this group; repeatable.")
    ] = None,
    queue: Annotated[bool, typer.Option("--queue", help="Only add the request to the queue.")] = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Add a deletion request, if one is given, and process all waiting requests in one edit."""
    with deletion(config, settings, quiet=quiet, traceback=traceback) as work:
        if request or samples or group:
            from unlearnkit.data import ByIndex

            indices = ByIndex.from_file(samples).indices if samples else ()
            work.ask(request, samples=indices, groups=group or ())
        if queue:
            out.print(f"{len(work.ledger.queue.waiting())} requests are waiting", highlight=False)
            return
        receipt = work.work()
        if receipt is None:
            out.print("no request is waiting: nothing was changed")
            return
        if receipt.outcome == "rolled back":
            out.print(f"rolled back: {escape(receipt.reason)}", highlight=False, soft_wrap=True)
        for split, score in receipt.after.items():
            was, now = receipt.before[split]["accuracy"], score["accuracy"]
            out.print(f"{split}: accuracy {was:.3f}→{now:.3f} ({score['samples']} samples)", highlight=False)
        out.print(escape(receipt.sentence()), highlight=False, soft_wrap=True)
        if receipt.outcome == "forgotten":
            out.print(escape(work.ledger.store.staleness().sentence()), highlight=False, soft_wrap=True)
    if receipt.outcome == "rolled back":
        raise typer.Exit(1)
