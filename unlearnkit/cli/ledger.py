"""``unlearnkit ledger``, ``rollback``, ``purge`` and ``verify-receipts``: the record of deletion requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from unlearnkit.cli.console import bars, clear_errors, one_process, out
from unlearnkit.cli.options import ConfigPath, Quiet, Settings, Traceback, load

if TYPE_CHECKING:
    from unlearnkit.deletion import Deletion


def ledger(
    config: ConfigPath,
    settings: Settings = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Estimate the importances again, on the model in use.")
    ] = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Start a ledger of deletion requests: estimate the importances of every group once, and store them."""
    with deletion(config, settings, quiet=quiet, traceback=traceback) as work:
        receipt = work.refresh() if refresh else work.start()
        out.print(escape(receipt.sentence()), highlight=False)
        out.print(f"ledger: {escape(str(work.ledger.folder))}: {len(work.ledger.store.keys)} groups", highlight=False)


def rollback(config: ConfigPath, settings: Settings = None, quiet: Quiet = False, traceback: Traceback = False) -> None:
    """Restore the model from before the last edit; it contains the forgotten samples again."""
    with deletion(config, settings, quiet=quiet, traceback=traceback) as work:
        from unlearnkit.deletion import rollback as restore

        out.print(escape(restore(work).sentence()), highlight=False)


def purge(config: ConfigPath, settings: Settings = None, quiet: Quiet = False, traceback: Traceback = False) -> None:
    """Delete all earlier models of a ledger; no rollback is possible afterwards."""
    with deletion(config, settings, quiet=quiet, traceback=traceback) as work:
        from unlearnkit.deletion import purge as delete

        out.print(escape(delete(work).sentence()), highlight=False)


def verify_receipts(config: ConfigPath, settings: Settings = None, traceback: Traceback = False) -> None:
    """Check the chain of receipts and every digest of a ledger; finds any changed byte."""
    with clear_errors(traceback=traceback):
        from unlearnkit.deletion import Ledger, verify
        from unlearnkit.deletion.work import ledger_folder

        receipts = verify(Ledger(ledger_folder(load(config, settings))))
        for receipt in receipts:
            out.print(escape(receipt.sentence()), highlight=False, soft_wrap=True)
        out.print(f"{len(receipts)} receipts, all as they were written; keep this digest of the last one elsewhere:")
        out.print(receipts[-1].digest if receipts else "none", highlight=False, soft_wrap=True)


@contextmanager
def deletion(config: Path, settings: list[str] | None, *, quiet: bool, traceback: bool) -> Iterator["Deletion"]:
    """Load a ledger; show progress and errors as all commands do."""
    with clear_errors(traceback=traceback), bars(quiet=quiet) as progress:
        from unlearnkit.deletion import Deletion

        one_process("ledger` and `forget")
        yield Deletion.load(load(config, settings), progress=progress)
