"""``unlearnkit ledger``, ``rollback``, ``purge`` and ``verify-receipts``: the record of deletion requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from unlearnkit.cli.console import bars, clear_errors, one_process, out
from unlearnkit.cli.options import ConfigPath, Quiet, Settings, Traceback
from unlearnkit.experiments.config import load_config

if TYPE_CHECKING:
    from pathlib import Path

    from unlearnkit.deletion import Deletion


def ledger(
    config: ConfigPath,
    settings: Settings = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Measure the importances again, on the model in use.")
    ] = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Start a ledger of deletion requests: measure the importances of every group once, and keep them."""
    with deletion(config, settings, quiet=quiet, traceback=traceback) as work:
        receipt = work.refresh() if refresh else work.start()
        out.print(escape(receipt.sentence()), highlight=False)
        out.print(f"ledger: {escape(str(work.ledger.folder))}: {len(work.ledger.store.keys)} groups", highlight=False)


def rollback(config: ConfigPath, settings: Settings = None, quiet: Quiet = False, traceback: Traceback = False) -> None:
    """Put the model back that was in use before the last edit; the forgotten samples are in it again."""
    from unlearnkit.deletion import rollback as put_back  # noqa: PLC0415 - torchvision and scikit-learn take seconds

    with deletion(config, settings, quiet=quiet, traceback=traceback) as work:
        out.print(escape(put_back(work).sentence()), highlight=False)


def purge(config: ConfigPath, settings: Settings = None, quiet: Quiet = False, traceback: Traceback = False) -> None:
    """Delete all earlier models of a ledger: afterwards nothing can be put back."""
    from unlearnkit.deletion import purge as delete  # noqa: PLC0415 - torchvision and scikit-learn take seconds

    with deletion(config, settings, quiet=quiet, traceback=traceback) as work:
        out.print(escape(delete(work).sentence()), highlight=False)


def verify_receipts(config: ConfigPath, settings: Settings = None, traceback: Traceback = False) -> None:
    """Walk the chain of receipts and every digest of a ledger; any byte that was changed is found."""
    from unlearnkit.deletion import Ledger, verify  # noqa: PLC0415 - torchvision and scikit-learn take seconds
    from unlearnkit.deletion.work import ledger_folder  # noqa: PLC0415 - torchvision and scikit-learn take seconds

    with clear_errors(traceback=traceback):
        receipts = verify(Ledger(ledger_folder(load_config(config, settings or []))))
        for receipt in receipts:
            out.print(escape(receipt.sentence()), highlight=False, soft_wrap=True)
        out.print(f"{len(receipts)} receipts, all as they were written; keep this digest of the last one elsewhere:")
        out.print(receipts[-1].digest if receipts else "none", highlight=False, soft_wrap=True)


@contextmanager
def deletion(config: "Path", settings: list[str] | None, *, quiet: bool, traceback: bool) -> "Iterator[Deletion]":
    """Load what a command on a ledger works with, and show progress and errors as all commands do."""
    from unlearnkit.deletion import Deletion  # noqa: PLC0415 - torchvision and scikit-learn take seconds

    with clear_errors(traceback=traceback), bars(quiet=quiet) as progress:
        one_process("ledger` and `forget")
        yield Deletion.load(load_config(config, settings or []), progress=progress)
