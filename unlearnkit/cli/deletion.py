"""``unlearnkit ledger``, ``forget``, ``rollback``, ``purge`` and ``verify-receipts``: deletion requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnkit.cli.console import bars, line, one_process
from unlearnkit.cli.options import ConfigPath, Quiet, Settings, load
from unlearnkit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from unlearnkit.deletion import Deletion, Receipt


def ledger(
    config: ConfigPath,
    settings: Settings = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Estimate importances again on the model in use.")] = False,
    quiet: Quiet = False,
) -> None:
    """Start a ledger of deletion requests: estimate the importances of every group once, and store them."""
    with deletion("ledger", config, settings, quiet=quiet) as work:
        if refresh:
            work.refresh()
        else:
            work.start()
        line(f"ledger: {work.ledger.folder}: {len(work.ledger.store.keys)} groups")


def forget(
    config: ConfigPath,
    settings: Settings = None,
    request: Annotated[str, typer.Option("--request", "-r", help="Name of the request, such as a ticket number.")] = "",
    samples: Annotated[Path | None, typer.Option(help="Text file, one index of a training sample per line.")] = None,
    group: Annotated[list[str] | None, typer.Option("--group", "-g", help="Group to forget; repeatable.")] = None,
    queue: Annotated[bool, typer.Option("--queue", help="Only add the request to the queue.")] = False,
    withdraw: Annotated[str, typer.Option(help="Take back the waiting request of this name; do nothing else.")] = "",
    quiet: Quiet = False,
) -> None:
    """Add a deletion request, if one is given, and process all waiting requests, in one edit where possible."""
    with deletion("forget", config, settings, quiet=quiet) as work:
        asked = bool(request or samples or group)
        if withdraw:
            if asked or queue:
                raise ConfigurationError("expected --withdraw alone, saw it with a request or --queue")
            work.withdraw(withdraw)
            return
        if asked:
            from unlearnkit.data import ByIndex

            indices = ByIndex.from_file(samples).indices if samples else ()
            work.ask(request, samples=indices, groups=group or ())
        if queue:
            line(f"{len(work.ledger.queue.waiting())} requests are waiting")
            return
        try:
            receipt = work.work()
        except KeyboardInterrupt:
            names = ", ".join(request.name for request in work.ledger.queue.waiting())
            line(f"the next `unlearnkit forget` without a request goes on with {names}", soft_wrap=True)
            raise
        if receipt is None and not asked:
            line("no request is waiting")
        if receipt and receipt.outcome == "forgotten":
            line(work.ledger.store.staleness().sentence(), soft_wrap=True)
            from unlearnkit.deletion.state import lost_accuracy

            edits, lost = lost_accuracy(work.ledger.receipts())
            if edits > 1:
                line(f"{edits} edits have cost {lost:.3f} of the accuracy on retained test data in all", soft_wrap=True)


def rollback(config: ConfigPath, settings: Settings = None, quiet: Quiet = False) -> None:
    """Restore the model from before the last edit; it contains the forgotten samples again."""
    with deletion("rollback", config, settings, quiet=quiet) as work:
        from unlearnkit.deletion import rollback as restore

        restore(work)


def purge(config: ConfigPath, settings: Settings = None, quiet: Quiet = False) -> None:
    """Delete all earlier models of a ledger; no rollback is possible afterwards."""
    with deletion("purge", config, settings, quiet=quiet) as work:
        from unlearnkit.deletion import purge as delete

        delete(work)
        line(
            f"not reached: the original checkpoint {work.experiment.config.model.checkpoint}, copies and patches "
            "elsewhere, backups",
            soft_wrap=True,
        )


def verify_receipts(
    config: ConfigPath,
    settings: Settings = None,
    head: Annotated[
        str, typer.Option(metavar="DIGEST", help="Digest of a receipt, kept elsewhere; it must be in the chain.")
    ] = "",
) -> None:
    """Check the chain of receipts, every digest and every file of a ledger; finds any changed byte."""
    from unlearnkit.deletion import verify
    from unlearnkit.deletion.work import find_ledger

    ledger = find_ledger(load(config, settings))
    receipts, pending = verify(ledger, head=head), ledger.state.pending
    for receipt in receipts:
        line(receipt.sentence(), soft_wrap=True)
    if pending:
        line(f"not finished: receipt {pending.receipt.number}: the next command that changes the ledger finishes it")
    if ledger.salt and not ledger.salt.exists():
        line(f"not checked: the salt, which is not in {ledger.salt}", soft_wrap=True)
    if head:
        known = next(receipt.number for receipt in receipts if receipt.digest == head)
        line(f"receipts 1 to {known} are as they were when the digest of receipt {known} was kept")
    line(f"{len(receipts)} receipts, all as they were written; keep this digest of the last one elsewhere:")
    line(receipts[-1].digest if receipts else "none", soft_wrap=True)


@contextmanager
def deletion(command: str, config: Path, settings: list[str] | None, *, quiet: bool) -> Iterator["Deletion"]:
    """Load the data and the ledger of a configuration, and show every receipt; exit with 1 after a refusal."""
    refused = False

    def show(receipt: "Receipt") -> None:
        nonlocal refused
        refused = refused or receipt.outcome in {"rolled back", "set aside"}
        if receipt.outcome == "rolled back":
            line(f"rolled back: {receipt.reason}", soft_wrap=True)
        for split in ("forget-train", "retain-test", "forget-test"):
            was, now = (scores.get(split, {}).get("accuracy") for scores in (receipt.before, receipt.after))
            if was is not None and now is not None:
                line(f"{split}: accuracy {was:.3f}→{now:.3f} ({receipt.after[split]['samples']} samples)")
        line(receipt.sentence(), soft_wrap=True)

    with bars(quiet=quiet) as progress:
        from unlearnkit.deletion import Deletion

        one_process(command)
        yield Deletion.load(load(config, settings), progress=progress, told=show)
    if refused:
        raise typer.Exit(1)
