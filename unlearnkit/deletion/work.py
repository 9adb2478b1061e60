"""Dealing with deletion requests: from sample numbers to an edited model, a smaller store and a receipt."""

import datetime as dt
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

import attrs
from torch import nn

from unlearnkit.deletion.editing import edit
from unlearnkit.deletion.ledger import Ledger, number_of
from unlearnkit.deletion.population import Population, Rows
from unlearnkit.deletion.queue import Request
from unlearnkit.deletion.receipt import Outcome, Receipt
from unlearnkit.deletion.state import KeptModel, Pending, State
from unlearnkit.experiments.config import Config
from unlearnkit.experiments.experiment import Experiment, chosen_method, make_unlearner
from unlearnkit.experiments.provenance import versions
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import Role
from unlearnkit.importance.store import fill
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.utils.errors import ConfigurationError, StoreError
from unlearnkit.utils.progress import Progress, silent


@final
@attrs.frozen(kw_only=True, eq=False)
class Deletion:
    """Deletion requests on the model of a configuration.

    Attributes:
        experiment: The configuration made real.
        ledger: Where everything is written down.
        plugins: Where names are looked up.
        progress: Shows a bar for each long stage.
    """

    experiment: Experiment
    ledger: Ledger
    plugins: PluginManager
    progress: Progress = silent

    @classmethod
    def load(cls, config: Config, *, plugins: PluginManager | None = None, progress: Progress = silent) -> "Deletion":
        """Load data and find the ledger; nothing is changed.

        Args:
            config: The configuration; its section ``[forget]`` is not looked at.
            plugins: Where names are looked up.
            progress: Shows a bar for each long stage.

        Returns:
            The deletion.
        """
        plugins = plugins or default_manager()
        make_unlearner(chosen_method(config, config.deletion.method, key="deletion.method"), plugins)
        return cls(
            experiment=Experiment.load(attrs.evolve(config, forget=type(config.forget)())),
            ledger=Ledger(ledger_folder(config)),
            plugins=plugins,
            progress=progress,
        )

    def start(self) -> Receipt:
        """Start the ledger with the original model, and measure the importances of every group.

        Killed at any moment, it goes on from there when it is called again.

        Returns:
            The first receipt.
        """
        if not (self.ledger.folder / "ledger.json").exists():
            original, _ = self.experiment.original_model()
            Ledger.start(self.ledger.folder, original, receipt=self._first)
        with self.ledger.held() as state:
            if state.receipts == 1:
                self._fill(state.store, state.current)
            return self.ledger.receipts()[0]

    def refresh(self) -> Receipt:
        """Measure the importances again, on the model in use and on all samples that are not forgotten.

        Returns:
            The receipt.
        """
        with self.ledger.held() as state:
            name = f"importances-{number_of(state.store) + 1}"
            self._fill(name, state.current)
            receipt = self.receipt(state, "measured again", groups=tuple(self.population().groups))
            new = state.standing(state.current, base=state.current, kept=state.kept)
            self.ledger.decide(attrs.evolve(new, store=name), Pending(receipt=receipt))
            return receipt

    def ask(self, name: str, *, samples: Iterable[int] = (), groups: Iterable[str] = ()) -> None:
        """Put a request into the queue.

        Args:
            name: Under which it is known.
            samples: Numbers of training samples.
            groups: Groups to forget whole.

        Raises:
            ConfigurationError: The name was used already, or there are no such samples or groups.
        """
        request = Request(name=name, samples=tuple(samples), groups=tuple(groups))
        with self.ledger.held():
            self.population().check(request)
            receipts = self.ledger.receipts()
            put_back = {n for r in receipts if r.outcome == "restored" for n in r.requests}
            done = [r for r in receipts if name in r.requests and r.outcome in {"forgotten", "nothing to forget"}]
            if done and name not in put_back:
                raise ConfigurationError(
                    f"request {name!r} was dealt with already (receipt {done[-1].number}: {done[-1].outcome}): "
                    "a request is asked for once"
                )
            self.ledger.queue.add(request)

    def work(self) -> Receipt | None:
        """Deal with everything that is waiting, in one edit.

        Returns:
            The receipt, or None when nothing was waiting.
        """
        with self.ledger.held() as state:
            waiting = self.ledger.queue.waiting()
            if not waiting:
                return None
            names = tuple(request.name for request in waiting)
            population = self.population()
            rows = population.rows(waiting)
            if len(rows):
                return edit(self, state, population, rows, names)
            why = "all of these samples were forgotten before"
            receipt = self.receipt(state, "nothing to forget", reason=why, requests=names)
            self.ledger.decide(state, Pending(receipt=receipt, answered=names))
            return receipt

    def population(self) -> Population:
        """Return who is in which group, without those who are forgotten.

        Returns:
            The population.
        """
        gone, count = self.ledger.forgotten(), len(self.experiment.bundle.train)
        hashes = self.ledger.hashes(range(count)) if gone else [""] * count
        kind = self.experiment.config.deletion.groups
        return Population.of(self.experiment.bundle, kind=kind, gone=(h in gone for h in hashes))

    def model(self, kept: KeptModel) -> nn.Module:
        """Load a model of the ledger.

        Args:
            kept: Which.

        Returns:
            The model, on the device, in eval mode.
        """
        return self.ledger.load_model(kept, self.experiment.fresh_model())

    def measure(self, base: KeptModel, rows: Rows) -> Importance:
        """Measure the importance of samples.

        Args:
            base: The model to measure on.
            rows: Numbers of training samples.

        Returns:
            Their importance.

        Raises:
            StoreError: The stored importances are of another model, which was purged.
        """
        kind = self.ledger.store.manifest.fingerprint
        if kind is not None and kind.model != base.digest:
            raise StoreError(
                "the model that the importances were measured on was purged, and a part of a group must be measured on "
                "it: measure them again with `unlearnkit ledger CONFIG.toml --refresh`, or forget whole groups"
            )
        batches = self.experiment.importance_batches(self.experiment.bundle.train.subset(rows))
        return self.experiment.estimator(self.plugins).estimate(
            self.model(base),
            batches,
            objective=self.experiment.importance_objective,
            role=Role.FORGET,
            progress=self.progress,
        )

    def receipt(self, state: State, outcome: Outcome, **fields: Any) -> Receipt:
        """Begin a receipt: the next number, after the last receipt, about the model in use.

        Args:
            state: Of the ledger.
            outcome: What came of it.
            **fields: Further fields.

        Returns:
            The receipt; the model after is the model before, unless the fields say otherwise.
        """
        current = state.current
        known = {"model_before": current.digest, "model_after": current.digest, "model_file": current.file}
        return _receipt(state.receipts + 1, state.head, outcome, **{**known, **self._seeds(), **fields})

    def _first(self, kept: KeptModel) -> Receipt:
        model = {"model_before": kept.digest, "model_after": kept.digest, "model_file": kept.file}
        return _receipt(1, "", "started", **model, **self._seeds())

    def _seeds(self) -> dict[str, Any]:
        return {"seeds": {"unlearning": self.experiment.config.seed}}

    def _fill(self, name: str, kept: KeptModel) -> None:
        experiment, groups = self.experiment, self.population().groups
        train = experiment.bundle.train
        fill(
            self.ledger.new_store(name),
            experiment.estimator(self.plugins),
            self.model(kept),
            {key: experiment.importance_batches(train.subset(rows)) for key, rows in groups.items()},
            objective=experiment.importance_objective,
            every=experiment.config.deletion.every,
            progress=self.progress,
        )


def ledger_folder(config: Config) -> Path:
    """Return where the ledger of a configuration lies."""
    return Path(config.deletion.folder) if config.deletion.folder else Path(config.output) / "ledger"


def _receipt(number: int, previous: str, outcome: Outcome, **fields: Any) -> Receipt:
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return Receipt(number=number, previous=previous, time=now, outcome=outcome, versions=versions(), **fields)
