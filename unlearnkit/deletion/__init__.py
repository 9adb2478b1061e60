"""Deletion requests on a model in use: a ledger with importances, a queue and receipts."""

from unlearnkit.deletion.ledger import Ledger, verify
from unlearnkit.deletion.state import Receipt
from unlearnkit.deletion.work import Deletion, purge, rollback

__all__ = ["Deletion", "Ledger", "Receipt", "purge", "rollback", "verify"]
