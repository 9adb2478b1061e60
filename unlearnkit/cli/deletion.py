"""``unlearnkit ledger``, ``forget``, ``rollback``, ``purge`` and ``verify-receipts``: deletion requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnkit.cli.console import bars, line, one_process
from unlearnkit.cli.options import ConfigPath, Quiet, Settings, load

if TYPE_CHECKING:
    from unlearnkit.deletion import Deletion


def ledger(
    config: ConfigPath,
    settings: Settings = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Estimate importances again on the model in use.")] = False,
    quiet: Quiet = False,
) -> None:
    """Start a ledger of deletion requests: estimate the importances of every group once, and store them."""
    with deletion(config, settings, quiet=quiet) as work:
        receipt = work.refresh() if refresh else work.start()
        line(receipt.sentence())
        line(f"ledger: {work.ledger.folder}: {len(work.ledger.store.keys)} groups")


def forget(
    config: ConfigPath,
    settings: Settings = None,
    request: Annotated[str, typer.Option("--request", "-r", help="Name of the request, such as a ticket number.")] = "",
    samples: Annotated[Path | None, typer.Option(help="Text file, one index of a training sample per line.")] = None,
    group: Annotated[list[str] | None, typer.Option("--group", "-g", help="Group to forget; repeatable.")] = None,
    queue: Annotated[bool, typer.Option("--queue", help="Only add the request to the queue.")] = False,
    quiet: Quiet = False,
) -> None:
    """Add a deletion request, if one is given, and process all waiting requests in one edit."""
    with deletion(config, settings, quiet=quiet) as work:
        if request or samples or group:
            from unlearnkit.data import ByIndex

            indices = ByIndex.from_file(samples).indices if samples else ()
            work.ask(request, samples=indices, groups=group or ())
        if queue:
            line(f"{len(work.ledger.queue.waiting())} requests are waiting")
            return
        receipt = work.work()
        if receipt is None:
            line("no request is waiting: nothing was changed")
            return
        if receipt.outcome == "rolled back":
            line(f"rolled back: {receipt.reason}", soft_wrap=True)
        for split, score in receipt.after.items():
            was, now = receipt.before[split]["accuracy"], score["accuracy"]
            line(f"{split}: accuracy {was:.3f}→{now:.3f} ({score['samples']} samples)")
        line(receipt.sentence(), soft_wrap=True)
        if receipt.outcome == "forgotten":
            line(work.ledger.store.staleness().sentence(), soft_wrap=True)
    if receipt.outcome == "rolled back":
        raise typer.Exit(1)


def rollback(config: ConfigPath, settings: Settings = None, quiet: Quiet = False) -> None:
    """Restore the model from before the last edit; it contains the forgotten samples again."""
    with deletion(config, settings, quiet=quiet) as work:
        from unlearnkit.deletion import rollback as restore

        line(restore(work).sentence())


def purge(config: ConfigPath, settings: Settings = None, quiet: Quiet = False) -> None:
    """Delete all earlier models of a ledger; no rollback is possible afterwards."""
    with deletion(config, settings, quiet=quiet) as work:
        from unlearnkit.deletion import purge as delete

        line(delete(work).sentence())


def verify_receipts(config: ConfigPath, settings: Settings = None) -> None:
    """Check the chain of receipts and every digest of a ledger; finds any changed byte."""
    from unlearnkit.deletion import Ledger, verify
    from unlearnkit.deletion.work import ledger_folder

    receipts = verify(Ledger(ledger_folder(load(config, settings))))
    for receipt in receipts:
        line(receipt.sentence(), soft_wrap=True)
    line(f"{len(receipts)} receipts, all as they were written; keep this digest of the last one elsewhere:")
    line(receipts[-1].digest if receipts else "none", soft_wrap=True)


@contextmanager
def deletion(config: Path, settings: list[str] | None, *, quiet: bool) -> Iterator["Deletion"]:
    """Load the data and the ledger of a configuration."""
    with bars(quiet=quiet) as progress:
        from unlearnkit.deletion import Deletion

        one_process("ledger` and `forget")
        yield Deletion.load(load(config, settings), progress=progress)
