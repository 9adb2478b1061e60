"""The configuration of an experiment: a TOML file whose every key is checked."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs

from unlearnkit.errors import ConfigurationError, StoreError
from unlearnkit.options import option
from unlearnkit.overrides import apply_overrides
from unlearnkit.structure import structure
from unlearnkit.training import Training


@final
@attrs.frozen(kw_only=True)
class ModelConfig:
    """Which model.

    Attributes:
        factory: Import path of a function that makes it, as ``"unlearnkit.models:small_cnn"``.
        options: Arguments of the function. ``num_classes`` is added from the data when the function takes it.
        checkpoint: Weights of the original model: read by ``run``, written by ``train``.
        allow_pickle: Whether the checkpoint may be a pickle (loaded with ``weights_only=True``).
    """

    factory: str
    options: Mapping[str, Any] = attrs.field(factory=dict)
    checkpoint: str = ""
    allow_pickle: bool = False


@final
@attrs.frozen(kw_only=True)
class DataConfig:
    """Which data.

    Attributes:
        name: ``"digits"``, ``"cifar100"`` or ``"image-folder"``; or leave it out and give ``factory``.
        factory: Import path of a function that returns a `DataBundle`.
        options: Arguments of the function.
        workers: Processes that load images.
    """

    name: str = ""
    factory: str = ""
    options: Mapping[str, Any] = attrs.field(factory=dict)
    workers: int = option(0, at_least=0, doc="processes that load images")


@final
@attrs.frozen(kw_only=True)
class ForgetConfig:
    """What to forget: exactly one of the four.

    Attributes:
        classes: Classes of the training target, by number or name.
        fine: Fine classes inside coarse ones, by number or name.
        indices: Indices into the training set.
        indices_file: A text file with one index a line.
    """

    classes: tuple[int | str, ...] = ()
    fine: tuple[int | str, ...] = ()
    indices: tuple[int, ...] = ()
    indices_file: str = ""


@final
@attrs.frozen(kw_only=True)
class ObjectiveConfig:
    """How a batch becomes one loss per sample: in training, importances, methods that train, and evaluation.

    Attributes:
        factory: Import path of an `Objective` class, or of a function that returns one.
        options: Its arguments.
    """

    factory: str = "unlearnkit:CrossEntropy"
    options: Mapping[str, Any] = attrs.field(factory=dict)


@final
@attrs.frozen(kw_only=True)
class ImportanceConfig:
    """How to measure what matters.

    Attributes:
        estimator: Name of the estimator.
        options: Its options.
        reference: ``"full"`` (D, as in the paper) or ``"retain"`` (D_r, as in the notebook).
        batch_size: Samples per batch of both passes.
        shuffle: Whether to shuffle the data once, with the experiment's seed; in data-set order otherwise.
        checkpoint: A folder where a pass writes down how far it is, so that a run that was killed goes on from there;
            removed when the results are written. Left out, nothing is written.
        every: Batches after which it writes; of each process, where there are several.
        precision: ``"model"``: forward passes in the dtype of the weights; ``"bfloat16"``: by `Autocast`.
    """

    estimator: str = "diagonal-fisher"
    options: Mapping[str, Any] = attrs.field(factory=dict)
    reference: str = option("full", choices=("full", "retain"), doc="the second set: D or D_r")
    batch_size: int = option(64, at_least=1, doc="samples per batch")
    shuffle: bool = False
    checkpoint: str = ""
    every: int = option(50, at_least=1, doc="batches between two checkpoints of an importance pass")
    precision: str = option("model", choices=("model", "bfloat16"), doc="of the forward passes")


@final
@attrs.frozen(kw_only=True)
class MethodConfig:
    """One edit; each method starts from the original model.

    Attributes:
        name: Name of the method.
        label: Name of its output folder; the name when left out.
        options: Its options.
        normalise: Compare mean importances; false compares sums.
        max_fraction: The largest fraction of weights that may change, 0 to 1; 1 sets no limit.
        grid: For ``unlearnkit compare``: options to lists of values; every combination is a variant of its own.
        tuned: For ``unlearnkit compare``: look for the options by ``[tuning]`` in the place of fixed ones.
    """

    name: str
    label: str = attrs.field(default=attrs.Factory(lambda self: self.name, takes_self=True))
    options: Mapping[str, Any] = attrs.field(factory=dict)
    normalise: bool = True
    max_fraction: float = option(1.0, at_least=0, at_most=1, doc="largest fraction of weights that may change")
    grid: Mapping[str, Any] = attrs.field(factory=dict)
    tuned: bool = False

    def __attrs_post_init__(self) -> None:
        for name, values in self.grid.items():
            if not isinstance(values, list | tuple) or not values:
                raise ConfigurationError(f"grid.{name}: expected a list of at least one value, saw {values!r}")
            if name in self.options:
                raise ConfigurationError(f"grid.{name}: stands in options too: one of the two must go")


def _seeds(_: Any, field: "attrs.Attribute[Any]", seeds: tuple[int, ...]) -> None:
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigurationError(f"{field.name}: expected different whole numbers ≥ 0, saw {list(seeds)}")


@final
@attrs.frozen(kw_only=True)
class EvaluationConfig:
    """What to measure before and after.

    Attributes:
        batch_size: Samples per batch.
        splits: Any of ``retain-train``, ``forget-train``, ``retain-test``, ``forget-test``; by default all but
            ``retain-train``, which is as long as training.
        metrics: Names of further metrics, from plugins.
        options: Metric to its options.
        seed: Of whatever draws numbers while measuring, for metrics that have a seed; independent of the other two.
        retrained: Checkpoints of models trained without the forget set, which metrics compare with.
        retrained_seeds: Training seeds of further such models, which are trained when they are first needed and kept.
        retrained_folder: Where they are kept; ``.retrained`` in the folder of results when left out.
        page: Whether to write ``report.html`` too, and to look at up to 5,000 samples of each split for its pictures.
    """

    batch_size: int = option(256, at_least=1, doc="samples per batch")
    splits: tuple[str, ...] = ("retain-test", "forget-test", "forget-train")
    metrics: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    seed: int = option(0, at_least=0, doc="of whatever draws numbers while measuring")
    retrained: tuple[str, ...] = ()
    retrained_seeds: tuple[int, ...] = attrs.field(default=(), validator=_seeds)
    retrained_folder: str = ""
    page: bool = True


@final
@attrs.frozen(kw_only=True)
class TuningConfig:
    """How ``unlearnkit tune`` looks for the right edit; see `unlearnkit.evaluation.tuning.Tuner`.

    Attributes:
        method: Label of the method to tune; may be left out where there is one.
        target: Which forget accuracy to aim at: ``"stated"`` (``forget_accuracy``), ``"retrained"`` (the mean of the
            retrained models of ``[evaluation]``) or ``"unseen"`` (the original's on samples never trained on).
        forget_accuracy: The stated one.
        budget: The largest loss of retain accuracy on validation data.
        validation_fraction: The share of the training set, forget and retain set alike, to choose by. The importances
            are measured on the rest.
        unseen_fraction: For the target ``"unseen"``: the share of the test set that is taken away to set the target.
        operating: The option that decides what is selected; found when left out.
        strength: The option that decides how strongly the selected weights are edited; found when left out.
        fractions: Shares of weights to select in the first round.
        strengths: Values of the strength option in multiples of the operating option.
        reestimate: Whether to re-estimate BatchNorm on retain data: ``"yes"``, ``"no"``, or ``"both"`` to try both.
        rounds: How often to look closer around the best.
    """

    method: str = ""
    target: str = option("stated", choices=("stated", "retrained", "unseen"), doc="which forget accuracy to aim at")
    forget_accuracy: float = option(0.0, at_least=0, at_most=1, doc="the stated one")
    budget: float = option(0.02, at_least=0, at_most=1, doc="largest loss of retain accuracy on validation data")
    validation_fraction: float = option(0.2, above=0, at_most=0.9, doc="share of the training set to choose by")
    unseen_fraction: float = option(0.5, above=0, at_most=0.9, doc="share of the test set that sets the target")
    operating: str = ""
    strength: str = ""
    fractions: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    strengths: tuple[float, ...] = (0.0, 0.3, 1.0)
    reestimate: str = option("both", choices=("both", "yes", "no"), doc="re-estimate BatchNorm on retain data")
    rounds: int = option(2, at_least=0, doc="how often to look closer around the best")


@final
@attrs.frozen(kw_only=True)
class DeletionConfig:
    """How deletion requests are dealt with; see `unlearnkit.deletion`.

    Attributes:
        folder: Of the ledger; ``ledger`` inside the output folder when left out.
        method: Label of the ``[[method]]`` that edits; may be left out where there is one.
        groups: The kind of label by which importances are kept apart; the training target when left out.
        budget: The largest loss of accuracy on retained test data that one edit may cost; beyond it, it is rolled back.
        keep: How many earlier models are kept, to be put back.
        keep_as: What they are kept as: ``"patch"``, the old values of what an edit changed; ``"model"``, all weights;
            or ``"smaller"``, the one of the two that takes less room.
        every: Batches after which an importance pass writes down how far it is.
    """

    folder: str = ""
    method: str = ""
    groups: str = ""
    budget: float = option(0.02, at_least=0, at_most=1, doc="largest loss of accuracy on retained test data")
    keep: int = option(1, at_least=0, doc="earlier models kept, to be put back")
    keep_as: str = option("smaller", choices=("smaller", "patch", "model"), doc="what earlier models are kept as")
    every: int = option(50, at_least=1, doc="batches between two checkpoints of an importance pass")


@final
@attrs.frozen(kw_only=True)
class ComparisonConfig:
    """What ``unlearnkit compare`` puts beside each other: methods × options × seeds × forget targets.

    Attributes:
        training_seeds: One original model each, in the place of ``training.seed``.
        retrained_seeds: Of the models retrained without the forget set, besides ``evaluation.retrained_seeds``.
        unlearning_seeds: Of what methods draw, of the order of importance batches and of the validation split of
            tuning; in the place of the top-level ``seed``.
        metrics: What to measure, besides ``evaluation.metrics``.
        forget: What to forget, one after the other; the section ``[forget]`` when left out.
        threads: Of torch in each process. The last bits of a result depend on it, so results are kept by it.
    """

    training_seeds: tuple[int, ...] = attrs.field(default=(0,), validator=_seeds)
    retrained_seeds: tuple[int, ...] = attrs.field(default=(100, 101, 102), validator=_seeds)
    unlearning_seeds: tuple[int, ...] = attrs.field(default=(0,), validator=_seeds)
    metrics: tuple[str, ...] = ("tug-of-war", "gap-to-retrain")
    forget: tuple[ForgetConfig, ...] = ()
    threads: int = option(1, at_least=1, doc="of torch in each process")


@final
@attrs.frozen(kw_only=True)
class Config:
    """A whole experiment.

    Attributes:
        output: Folder for the results; relative paths are relative to the current folder.
        model: Which model.
        data: Which data.
        forget: What to forget.
        objective: How a batch becomes losses.
        importance: How to measure what matters.
        method: The edits, each from the original model.
        evaluation: What to measure.
        tuning: How ``unlearnkit tune`` looks for the right edit.
        comparison: What ``unlearnkit compare`` compares.
        training: How ``unlearnkit train`` makes the original model.
        deletion: How deletion requests are dealt with.
        seed: Of the edit and of the order of its data; ``training.seed`` and ``evaluation.seed`` are others.
        device: ``"auto"`` takes CUDA where there is one; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
    """

    output: str
    model: ModelConfig
    data: DataConfig
    forget: ForgetConfig = attrs.field(factory=ForgetConfig)
    objective: ObjectiveConfig = attrs.field(factory=ObjectiveConfig)
    importance: ImportanceConfig = attrs.field(factory=ImportanceConfig)
    method: tuple[MethodConfig, ...] = ()
    evaluation: EvaluationConfig = attrs.field(factory=EvaluationConfig)
    tuning: TuningConfig = attrs.field(factory=TuningConfig)
    comparison: ComparisonConfig = attrs.field(factory=ComparisonConfig)
    training: Training = attrs.field(factory=Training)
    deletion: DeletionConfig = attrs.field(factory=DeletionConfig)
    seed: int = option(0, at_least=0, doc="of the edit and of the order of its data")
    device: str = "auto"

    def __attrs_post_init__(self) -> None:
        labels = [method.label for method in self.method]
        again = sorted({label for label in labels if labels.count(label) > 1})
        if again:
            raise ConfigurationError(
                f"method: expected different labels, saw {again} more than once: give each a label"
            )
        bad = [label for label in labels if not label or Path(label).name != label]
        if bad:
            raise ConfigurationError(f"method.label: expected the name of a folder, saw {bad}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration.

    Args:
        path: A TOML file.
        overrides: Settings such as ``"importance.batch_size=32"`` or ``"method.ssd.options.alpha=5"``, which replace
            or add to what the file says.

    Returns:
        The configuration.

    Raises:
        StoreError: No such file.
        ConfigurationError: Not TOML, a key that is not known (the nearest right one is named), a wrong type or value.
    """
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read the configuration {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    return structure(apply_overrides(raw, overrides), Config, where=str(path))


def plain(config: Config) -> dict[str, Any]:
    """Return a configuration as plain values, for a record.

    Args:
        config: The configuration.

    Returns:
        Nested dicts, as in the TOML file, the defaults filled in.
    """
    return attrs.asdict(config)
