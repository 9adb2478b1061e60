"""The main job from a configuration: importances once, then every method on a copy of the original model."""

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import attrs
from torch import nn

from unlearnkit.data import LabelledImages
from unlearnkit.distributed.collectives import barrier, raise_on_all_ranks
from unlearnkit.distributed.ranks import Ranks
from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.evaluation.metric import EvaluationInputs, Measurement
from unlearnkit.experiments.config import Config, MethodConfig, plain
from unlearnkit.experiments.experiment import Experiment, make_metrics, make_unlearner
from unlearnkit.experiments.page_data import Gallery
from unlearnkit.experiments.provenance import forget_record, manifest
from unlearnkit.experiments.retrained import references
from unlearnkit.importance.estimator import ImportanceEstimator
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.multi_process import estimate_together, forget_parts
from unlearnkit.importance.provenance import Role
from unlearnkit.models.parameters import broadcast_from_rank_0
from unlearnkit.pipeline import Pipeline
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.reporting import RunRecord, write_result
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.unlearner import Need, Unlearner
from unlearnkit.utils.errors import ConfigurationError, StoreError, nearest
from unlearnkit.utils.memory import peak_memory
from unlearnkit.utils.progress import Progress, silent

REQUESTS = "unlearnkit.requests"
"""Key of a checkpoint's metadata: a JSON list of the digests of the forget sets that were applied to it."""


def run(
    config: Config,
    *,
    plugins: PluginManager | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    again: bool = False,
    progress: Progress = silent,
) -> Iterator[RunRecord]:
    """Run every method of a configuration.

    Everything that can be checked is checked before the first minute of work. Each method's folder appears whole or
    not at all. Where torch.distributed is in use, importances and evaluation are shared out among its processes, every
    process makes the same edits, and rank 0 writes.

    Args:
        config: The configuration.
        plugins: Where names are looked up.
        dry_run: Edit in memory only, measure nothing, write nothing.
        overwrite: Replace folders of earlier results.
        again: Apply a forget set that the checkpoint says was applied to it already.
        progress: Shows a bar for each long stage.

    Yields:
        One record per method, as soon as it is written.

    Raises:
        ConfigurationError: No method, an unknown split, a request that was applied already.
        StoreError: A folder of results is in the way.
    """
    plugins = plugins or default_manager()
    if dry_run:
        config = attrs.evolve(config, importance=attrs.evolve(config.importance, checkpoint=""))
    if not config.method:
        raise ConfigurationError("method: expected at least one [[method]], saw none: `unlearnkit methods` lists them")
    tuned = [method.label for method in config.method if method.tuned]
    if tuned:
        raise ConfigurationError(f"method {tuned[0]!r}: expected fixed options, saw tuned: use `unlearnkit tune`")
    unlearners = {method.label: make_unlearner(method, plugins) for method in config.method}
    folders = {method.label: Path(config.output) / method.label for method in config.method}
    taken = [str(folder) for folder in folders.values() if folder.exists()]
    if taken and not (dry_run or overwrite):
        raise StoreError(f"results are there already: {', '.join(taken)}: choose another output, or overwrite them")
    barrier()  # nobody has written yet when the others look whether something is in the way
    job = Job.start(config, plugins, again=again, progress=progress, references=not dry_run)
    importances = job.importances({need for unlearner in unlearners.values() for need in unlearner.needs})
    before = {} if dry_run else job.evaluate(job.original)
    gallery = job.gallery()
    for method in config.method:
        model = copy.deepcopy(job.original)
        record = job.edit(model, method, unlearners[method.label], importances)
        if not dry_run:
            record = job.evaluated(record, model, before)
            record = gallery.illustrated(record, model) if config.evaluation.page else record
            job.write(folders[method.label], model, record)
        yield record
    job.forget_checkpoints()


@final
@attrs.frozen(kw_only=True, eq=False)
class Job:
    """What all edits of one configuration share."""

    experiment: Experiment
    plugins: PluginManager
    original: nn.Module
    retrained: tuple[nn.Module, ...]
    requests: list[str]
    progress: Progress
    seconds: dict[str, float] = attrs.field(factory=dict)

    @classmethod
    def start(
        cls, config: Config, plugins: PluginManager, *, again: bool, progress: Progress, references: bool = True
    ) -> "Job":
        """Load data and models, and check all that can be checked."""
        experiment = Experiment.load(config)
        known = experiment.splits()
        unknown = [s for s in config.evaluation.splits if s not in {*known, "forget-test", "retain-test"}]
        if unknown:
            raise ConfigurationError(f"evaluation.splits: there is no {unknown[0]!r}{nearest(unknown[0], known)}")
        make_metrics(config.evaluation, plugins)
        original, metadata = experiment.original_model()
        requests: list[str] = json.loads(metadata.get(REQUESTS, "[]"))
        job = cls(
            experiment=experiment,
            plugins=plugins,
            original=original,
            retrained=(),
            requests=requests,
            progress=progress,
        )
        if job.request in requests and not again:
            raise ConfigurationError(
                f"this forget set (digest {job.request}) was applied to {config.model.checkpoint} already: applying a "
                "method twice wrecks models; start from the original model, or say so with --again"
            )
        return job.with_references() if references else job

    def with_references(self) -> "Job":
        """Load the retrained models that the configuration asks for, and train those that are not there yet."""
        if not (self.experiment.config.evaluation.retrained or self.experiment.config.evaluation.retrained_seeds):
            return self
        start = time.perf_counter()
        retrained = references(self.experiment, progress=self.progress)
        self.seconds["retrained models"] = time.perf_counter() - start
        return attrs.evolve(self, retrained=retrained)

    @property
    def request(self) -> str:
        """Return the digest of the forget set."""
        assert self.experiment.split is not None, "start() asked for the splits, which need it"
        return self.experiment.split.train.digest()

    def importances(self, needs: set[Need]) -> dict[Need, Importance]:
        """Estimate each importance that is needed, once."""
        chosen = self.experiment.config.importance
        estimator = self.experiment.estimator(self.plugins)
        wanted = {
            Need.FORGET_IMPORTANCE: (Role.FORGET, "forget-train"),
            Need.REFERENCE_IMPORTANCE: (Role(chosen.reference), f"{chosen.reference}-train"),
        }
        found = {}
        for need, (role, split) in wanted.items():
            if need in needs:
                start = time.perf_counter()
                found[need] = self.importance(estimator, self.experiment.splits()[split], role)
                self.seconds[f"{role.value} importance"] = time.perf_counter() - start
        return found

    def importance(
        self, estimator: ImportanceEstimator, data: LabelledImages, role: Role, *, stage: str = "run"
    ) -> Importance:
        """Estimate one importance of the original model, with all processes there are."""
        return estimate_together(
            estimator,
            self.original,
            self.experiment.importance_batches(data),
            objective=self.experiment.importance_objective,
            role=role,
            checkpoint=self._checkpoint(stage, role),
            every=self.experiment.config.importance.every,
            progress=self.progress,
        )

    def forget_checkpoints(self, *, stage: str = "run") -> None:
        """Delete what the passes wrote down, when the results are safe."""
        for role in Role:
            folder = self._checkpoint(stage, role)
            if folder is not None:
                forget_parts(folder)

    def _checkpoint(self, stage: str, role: Role) -> Path | None:
        chosen = self.experiment.config.importance.checkpoint
        return Path(chosen) / f"{stage}-{role.value}" if chosen else None

    def write(self, folder: Path, model: nn.Module | None, record: RunRecord) -> None:
        """Write a folder of results: the first process does, and the others wait."""
        with raise_on_all_ranks():
            if Ranks.current().rank == 0:
                page = self.experiment.config.evaluation.page
                write_result(folder, model, record, metadata=self.metadata(), page=page)

    def edit(
        self, model: nn.Module, method: MethodConfig, unlearner: Unlearner, importances: dict[Need, Importance]
    ) -> RunRecord:
        """Edit a copy of the original model."""
        config, splits = self.experiment.config, self.experiment.splits()
        pipeline = Pipeline(
            unlearner=unlearner,
            estimator=self.experiment.estimator(self.plugins),
            normalise=method.normalise,
            reference_role=Role(config.importance.reference),
            max_fraction=method.max_fraction,
            plugins=self.plugins,
        )
        with raise_on_all_ranks():
            report = pipeline.run(
                model,
                forget=importances.get(Need.FORGET_IMPORTANCE),
                reference=importances.get(Need.REFERENCE_IMPORTANCE),
                forget_data=self.experiment.importance_batches(splits["forget-train"]),
                retain_data=self.experiment.importance_batches(splits["retain-train"]),
                model_factory=self.experiment.fresh_model,
                objective=self.experiment.objective,
                seed=config.seed,
                progress=self.progress,
            )
        report = aligned(attrs.evolve(report, seconds={**self.seconds, **report.seconds}), model)
        assert self.experiment.split is not None, "start() asked for the splits, which need it"
        return RunRecord(label=method.label, report=report, forget=forget_record(self.experiment.split.train))

    def evaluated(self, record: RunRecord, model: nn.Module, before: dict[str, LossAndAccuracy]) -> RunRecord:
        """Measure an edited model."""
        start = time.perf_counter()
        after, measured = self.evaluate(model), self.measure(model)
        seconds = {**record.report.seconds, "evaluation": time.perf_counter() - start}
        report = attrs.evolve(record.report, seconds=seconds)
        return attrs.evolve(
            record,
            report=report,
            before=before,
            after=after,
            metrics={name: {k: m.value for k, m in found.items()} for name, found in measured.items()},
            not_applicable={
                name: {k: m.reason for k, m in found.items() if m.value is None} for name, found in measured.items()
            },
            memory=peak_memory(self.experiment.device),
            manifest=self.manifest(),
        )

    def evaluate(self, model: nn.Module) -> dict[str, LossAndAccuracy]:
        """Measure loss and accuracy."""
        return self.experiment.scores(model, self.experiment.evaluated_splits(), progress=self.progress)

    def measure(self, model: nn.Module) -> dict[str, dict[str, Measurement]]:
        """Measure what the configuration names besides."""
        objective = self.experiment.objective
        batches = {name: self.experiment.shared_batches(data) for name, data in self.experiment.splits().items()}
        inputs = EvaluationInputs(
            model=model, splits=batches, objective=objective, original=self.original, retrained=self.retrained
        )
        metrics = make_metrics(self.experiment.config.evaluation, self.plugins)
        return {name: metric.examine(inputs) for name, metric in metrics.items()}

    def gallery(self) -> Gallery:
        """Return what looks at edited models beside the original and the retrained ones."""
        return Gallery(
            experiment=self.experiment, original=self.original, retrained=self.retrained, progress=self.progress
        )

    def manifest(self) -> dict[str, Any]:
        """Describe the run."""
        experiment = self.experiment
        return manifest(config=plain(experiment.config), data=experiment.bundle.train, device=experiment.device)

    def metadata(self) -> dict[str, str]:
        """Return what is kept beside the edited weights."""
        return {
            REQUESTS: json.dumps([*self.requests, self.request]),
            "unlearnkit.factory": self.experiment.config.model.factory,
        }


def aligned(report: Report, model: nn.Module) -> Report:
    """See that all processes have made the same edit."""
    others = broadcast_from_rank_0(model, report.model_after)
    if not others:
        return report
    who = f"{'rank' if len(others) == 1 else 'ranks'} {', '.join(map(str, others))} of {Ranks.current().size}"
    remark = f"{who} made another edit than rank 0, as CUDA may; all went on with that of rank 0"
    return attrs.evolve(report, remarks=(*report.remarks, remark))
