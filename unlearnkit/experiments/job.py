"""What all edits of one configuration share: data, models, importances, and the folder of results."""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, final

import attrs
from torch import nn

from unlearnkit.data import LabelledImages
from unlearnkit.data.loaders import drawn_rows
from unlearnkit.distributed import Ranks, raise_on_all_ranks
from unlearnkit.evaluation import EvaluationInputs, LossAndAccuracy
from unlearnkit.evaluation.metric import feature_measures
from unlearnkit.evaluation.model_outputs import SPLITS, ModelOutputs, Outputs
from unlearnkit.evaluation.plot_data import collect_plot_data
from unlearnkit.experiments.config import Config, MethodConfig
from unlearnkit.experiments.experiment import Experiment, check_split, make_metrics
from unlearnkit.experiments.provenance import digest_of, forget_record
from unlearnkit.experiments.train import load_or_retrain
from unlearnkit.importance import Importance, Role, estimate_together, sampled_reference
from unlearnkit.importance.multi_process import forget_parts
from unlearnkit.models.checkpoint import REQUESTS, applied_requests
from unlearnkit.models.parameters import broadcast_from_rank_0, digest
from unlearnkit.pipeline import Edit
from unlearnkit.plugins.manager import PluginManager
from unlearnkit.reporting import RunRecord, read_record, write_result
from unlearnkit.reporting.write import check_replaceable
from unlearnkit.unlearning import Need, Report
from unlearnkit.unlearning.report import plain
from unlearnkit.utils.errors import ConfigurationError, NonFiniteError, StoreError, UnlearnKitWarning
from unlearnkit.utils.files import locked_folder
from unlearnkit.utils.memory import peak_memory
from unlearnkit.utils.progress import Progress

_MOST = 5000  # samples of each split that a page's pictures need


@contextmanager
def exclusive(output: str) -> Iterator[None]:
    """Keep other runs, tunings and comparisons out of a folder of results; rank 0 holds its lock."""
    with ExitStack() as held:
        with raise_on_all_ranks():
            if Ranks.current().rank == 0:
                if (Path(output) / "ledger.json").exists():
                    raise StoreError(f"output: expected a folder for results, saw the ledger {output}: choose another")
                held.enter_context(locked_folder(output))
        yield


def result_folder(config: Config, label: str) -> Path:
    return Path(config.output) / label


def earlier_results(config: Config, *, overwrite: bool) -> dict[str, RunRecord]:
    """Read the results of a killed run of this configuration; raise for any other file that is in the way."""
    folders = {method.label: result_folder(config, method.label) for method in config.method}
    if overwrite:
        for folder in folders.values():
            check_replaceable(folder)
        return {}
    taken = {label: folder for label, folder in folders.items() if os.path.lexists(folder)}
    mine, found = digest_of(plain(attrs.asdict(config))), dict[str, RunRecord]()
    for label, folder in taken.items():
        with suppress(StoreError):
            found[label] = read_record(folder)
    own = {label for label, record in found.items() if digest_of(record.manifest.get("config")) == mine}
    finished = len(taken) == len(folders) and not any(_lacks_page(folder, config) for folder in taken.values())
    if finished or own != taken.keys():
        shown = ", ".join(map(str, taken.values()))
        raise StoreError(f"results already exist: {shown}: choose another output, or pass --overwrite")
    return found


@final
@attrs.frozen(kw_only=True, eq=False)
class Job:
    """What all edits of one configuration share."""

    experiment: Experiment
    plugins: PluginManager
    original: nn.Module
    retrained: tuple[nn.Module, ...]
    progress: Progress
    requests: list[str] = attrs.field(factory=list)
    studies: list[str] = attrs.field(factory=list)  # the searches of this job, by their names in the storage
    stage: str = "run"
    seconds: dict[str, float] = attrs.field(factory=dict)
    _known: dict[Role, tuple[Importance, float]] = attrs.field(factory=dict, init=False)
    _outputs: dict[tuple[int, str], Outputs] = attrs.field(factory=dict, init=False, repr=False)
    _retrained_scores: list[dict[str, LossAndAccuracy]] = attrs.field(factory=list, init=False)

    @classmethod
    def start(
        cls, config: Config, plugins: PluginManager, *, again: bool, progress: Progress, references: bool = True
    ) -> "Job":
        """Load data and models, and check all that can be checked."""
        experiment = Experiment.load(config)
        for name in config.evaluation.splits:
            check_split(name)
        make_metrics(config, plugins)
        experiment.estimator(plugins)
        original, metadata = experiment.original_model()
        requests, request = applied_requests(metadata), experiment.forgotten.digest()
        if request in requests and not again:
            raise ConfigurationError(
                f"this forget set (digest {request}) was applied to {config.model.checkpoint} already: a second edit "
                "may change far more weights than the first; start from the original model, or pass --again"
            )
        start = time.perf_counter()
        retrained = load_or_retrain(experiment, progress=progress) if references else ()
        return cls(
            experiment=experiment,
            plugins=plugins,
            original=original,
            retrained=retrained,
            requests=requests,
            progress=progress,
            seconds={"retrained models": time.perf_counter() - start} if retrained else {},
        )

    def go_on(self, records: Mapping[str, RunRecord]) -> None:
        """Keep the results of a run that was stopped, if it had the same original model, data and forget set."""
        if not records:
            return
        mine = _basis(self.experiment.manifest(), self.experiment.forgotten.digest(), digest(self.original))
        for label, record in records.items():
            folder = result_folder(self.experiment.config, label)
            seen = _basis(record.manifest, record.forget.get("digest"), record.report.model_before)
            differ = [what for what, value in mine.items() if seen[what] != value]
            if differ:
                raise StoreError(
                    f"{folder}: expected a result of the same {' and '.join(differ)}, to go on after a run that was "
                    "stopped, saw another: choose another output, or pass --overwrite"
                )
            warnings.warn(f"{folder} is kept: the run that was stopped wrote it", UnlearnKitWarning, stacklevel=2)
            with raise_on_all_ranks():
                if Ranks.current().rank == 0 and _lacks_page(folder, self.experiment.config):
                    from unlearnkit.reporting.page import write_page  # noqa: PLC0415 - matplotlib takes a second

                    write_page(folder, record)

    def edit(
        self, model: nn.Module, method: MethodConfig, parts: Mapping[str, LabelledImages], *, edit: Edit | None = None
    ) -> Report:
        """Edit a copy of the original model with importances of ``parts``, each measured once."""
        importances, experiment = self.importances(parts), self.experiment
        with raise_on_all_ranks():
            report = experiment.pipeline(method, self.plugins).run(
                model,
                forget=importances[Need.FORGET_IMPORTANCE],
                reference=importances[Need.REFERENCE_IMPORTANCE],
                forget_data=experiment.importance_batches(parts["forget-train"]),
                retain_data=experiment.importance_batches(parts["retain-train"]),
                model_factory=experiment.make_model,
                objective=experiment.objective,
                seed=experiment.config.seed,
                edit=edit,
                progress=self.progress,
            )
        report = aligned(report, model)
        measured = {f"{role.value} importance": seconds for role, (_, seconds) in self._known.items()}
        shared = {stage: seconds for stage, seconds in measured.items() if stage in report.seconds}
        return attrs.evolve(report, seconds={**self.seconds, **report.seconds, **shared})

    def importances(self, parts: Mapping[str, LabelledImages]) -> dict[Need, Callable[[], Importance]]:
        """Return functions that estimate the importances when they are first called."""
        role = Role(self.experiment.config.importance.reference)

        def forget() -> Importance:
            return self._once(Role.FORGET, lambda: self._measure(Role.FORGET, parts["forget-train"]))

        def reference() -> Importance:
            wanted, retain = self.experiment.config.importance.reference_samples, parts["retain-train"]
            if not 0 < wanted < len(retain):
                return self._measure(role, parts[f"{role.value}-train"])
            seed, exact = self.experiment.config.seed, forget() if role is Role.FULL else None
            drawn = retain.subset(drawn_rows(len(retain), wanted, seed=seed))
            sample = self._measure(Role.RETAIN, drawn)
            return sampled_reference(sample, retained=len(retain), seed=seed, forget=exact)

        return {Need.FORGET_IMPORTANCE: forget, Need.REFERENCE_IMPORTANCE: lambda: self._once(role, reference)}

    def _once(self, role: Role, measure: Callable[[], Importance]) -> Importance:
        if role not in self._known:
            start = time.perf_counter()
            found = measure()
            self._known[role] = found, time.perf_counter() - start
        return self._known[role][0]

    def _measure(self, role: Role, data: LabelledImages) -> Importance:
        return estimate_together(
            self.experiment.estimator(self.plugins),
            self.original,
            self.experiment.importance_batches(data),
            objective=self.experiment.importance_objective,
            role=role,
            checkpoint=self._checkpoint(role),
            every=self.experiment.config.importance.every,
            progress=self.progress,
        )

    def forget_checkpoints(self) -> None:
        """Delete the checkpoints of the importance passes, once the results are written."""
        for role in Role:
            folder = self._checkpoint(role)
            if folder is not None:
                forget_parts(folder)

    def _checkpoint(self, role: Role) -> Path | None:
        chosen = self.experiment.config.importance.checkpoint
        return Path(chosen) / f"{self.stage}-{role.value}" if chosen else None

    def record(self, label: str, report: Report, **fields: Any) -> RunRecord:
        """Describe an edit that is not evaluated yet."""
        return RunRecord(label=label, report=report, forget=forget_record(self.experiment.forgotten), **fields)

    def write(self, folder: Path, model: nn.Module | None, record: RunRecord) -> None:
        """Write a folder of results on rank 0, while the others wait."""
        metadata = {
            REQUESTS: json.dumps([*self.requests, self.experiment.forgotten.digest()]),
            "unlearnkit.factory": self.experiment.config.model.source,
        }
        with raise_on_all_ranks():
            if Ranks.current().rank == 0:
                write_result(folder, model, record, metadata=metadata, page=self.experiment.config.evaluation.page)
                self.plugins.after_write(folder)

    def evaluated(self, record: RunRecord, model: nn.Module, before: dict[str, LossAndAccuracy]) -> RunRecord:
        start = time.perf_counter()
        try:
            after = self.evaluate(model)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"method {record.label!r}: the edited model has no finite losses ({error}), and nothing is written for "
                "it: choose other options or leave it out"
            ) from error
        inputs = self.inputs(model, self.experiment.splits())
        metrics = make_metrics(self.experiment.config, self.plugins)
        measured = {name: metric.examine(inputs) for name, metric in metrics.items()}
        seconds = {**record.report.seconds, "evaluation": time.perf_counter() - start}
        return attrs.evolve(
            record,
            report=attrs.evolve(record.report, seconds=seconds),
            before=before,
            after=after,
            metrics={name: {k: m.value for k, m in found.items()} for name, found in measured.items()},
            not_applicable={
                name: {k: m.reason for k, m in found.items() if m.reason} for name, found in measured.items()
            },
            features=feature_measures(metrics, measured),
            memory=peak_memory(self.experiment.device),
            manifest=self.experiment.manifest(),
        )

    def evaluate(self, model: nn.Module) -> dict[str, LossAndAccuracy]:
        """Measure loss and accuracy on the splits of the configuration that are not empty."""
        parts = self.experiment.splits()
        chosen = {name: parts[name] for name in self.experiment.config.evaluation.splits if name in parts}
        return self.experiment.scores(model, chosen, progress=self.progress)

    def inputs(self, model: nn.Module, parts: Mapping[str, LabelledImages]) -> EvaluationInputs:
        return EvaluationInputs(
            model=model,
            splits={name: self.experiment.shared_batches(parts[name]) for name in SPLITS if name in parts},
            objective=self.experiment.objective,
            original=self.original,
            retrained=self.retrained,
        )

    def compared(self, record: RunRecord, model: nn.Module) -> RunRecord:
        """Add the scores of the retrained models and, if there is to be a page, its plots; call it on every rank."""
        chosen, data, parts = self.experiment.config.evaluation, self.experiment.bundle.train, self.experiment.splits()
        if not self._retrained_scores:
            self._retrained_scores.extend(self.evaluate(known) for known in self.retrained)
        record = attrs.evolve(record, retrained=tuple(self._retrained_scores))
        if not chosen.page:
            return record
        rows = {name: drawn_rows(len(part), _MOST, seed=chosen.seed) for name, part in parts.items()}
        inputs = self.inputs(model, {name: part.subset(rows[name]) for name, part in parts.items()})
        classes = data.class_names.get(data.target, ())
        views = collect_plot_data(ModelOutputs(inputs, self._outputs), classes=classes, seed=chosen.seed)
        for key in [key for key in self._outputs if key[0] == id(model)]:
            del self._outputs[key]  # the next edited model may get the same id
        return attrs.evolve(record, views=views)


def _lacks_page(folder: Path, config: Config) -> bool:
    return config.evaluation.page and not (folder / "report.html").exists()


def _basis(manifest: Mapping[str, Any], forget: str | None, model: str) -> dict[str, Any]:
    """Say what a result depends on besides its configuration."""
    named = {"training data": "data_digest", "test data": "test_data_digest", "versions": "versions"}
    return {"original model": model, "forget set": forget, **{what: manifest.get(key) for what, key in named.items()}}


def aligned(report: Report, model: nn.Module) -> Report:
    """Give every rank the edit of rank 0, and say so in the report where they differed."""
    others = broadcast_from_rank_0(model, report.model_after)
    if not others:
        return report
    who = f"{'rank' if len(others) == 1 else 'ranks'} {', '.join(map(str, others))} of {Ranks.current().size}"
    remark = f"{who} made another edit than rank 0, as CUDA may; all went on with that of rank 0"
    return attrs.evolve(report, remarks=(*report.remarks, remark))
