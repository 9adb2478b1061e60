"""Requests, queues, rollbacks, purges and new measurements in any order: the ledger verifies, and is never stuck."""

import random
from pathlib import Path

import pytest
import small_ledger as small

from unlearnkit.deletion import Deletion, purge, rollback, verify
from unlearnkit.models.parameters import digest
from unlearnkit.utils.errors import ConfigurationError, MismatchError, StoreError

COMMANDS = ("ask a group", "ask samples", "work", "work", "withdraw", "rollback", "purge", "refresh", "erase")


def command(name, deletion, rng, number):
    """Do one thing to a ledger; `ConfigurationError` is what it says when it cannot be done."""
    ledger = deletion.ledger
    if name == "ask a group":
        deletion.ask(f"request-{number}", groups=[rng.choice(small.CLASSES)])
    elif name == "ask samples":
        count = len(deletion.experiment.bundle.train)
        deletion.ask(f"request-{number}", samples=rng.sample(range(count), 2))
    elif name == "work":
        if not ledger.state.measured:
            deletion.start()
        stored = {key: entry.samples for key, entry in ledger.store.manifest.groups.items()}
        if stored != {key: len(rows) for key, rows in deletion.population().groups.items()}:
            deletion.refresh()  # a rollback has put samples back
        deletion.work()
    elif name == "withdraw":
        deletion.withdraw(rng.choice([request.name for request in ledger.queue.waiting()] or ["none"]))
    elif name == "erase":
        data, forgotten = deletion.experiment.bundle.train, ledger.forgotten()
        for row, path in enumerate(data.images.paths):
            if deletion.hashes([row])[0] in forgotten:
                Path(path).unlink()
    else:
        {"rollback": rollback, "purge": purge, "refresh": Deletion.refresh}[name](deletion)


def walk(load, seed, steps):
    rng = random.Random(seed)
    settings = [f"deletion.keep={rng.randrange(4)}", f"deletion.keep_as={rng.choice(['smaller', 'patch', 'model'])}"]
    for number in range(steps):
        deletion, name = load(*settings), rng.choice(COMMANDS)
        try:
            command(name, deletion, rng, number)
        except ConfigurationError:
            pass
        except MismatchError:
            assert name == "rollback"  # of samples whose files were erased
        except StoreError as error:  # part of a group must be measured on a model that is gone
            if "was purged" not in str(error):
                raise
            deletion.refresh()
        ledger = deletion.ledger
        assert ledger.state.pending is None
        verify(ledger)
        model = deletion.model(ledger.state.current)
        assert digest(model) == ledger.state.current.digest == ledger.receipts()[-1].model_after
        yield name


SEEDS = [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 60))]


@pytest.mark.parametrize("seed", SEEDS)
def test_any_sequence_of_commands(load, record_property, seed):
    record_property("tried", ("commands of a ledger in random sequences", len(list(walk(load, seed, 12)))))
