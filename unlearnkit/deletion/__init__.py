"""Deletion requests on a model in use: a ledger with importances, a queue and receipts."""

from unlearnkit.deletion.history import purge, rollback, verify
from unlearnkit.deletion.ledger import Ledger
from unlearnkit.deletion.receipts import Receipt
from unlearnkit.deletion.work import Deletion

__all__ = ["Deletion", "Ledger", "Receipt", "purge", "rollback", "verify"]
