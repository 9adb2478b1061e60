"""The configuration of an experiment: a TOML file whose every key is checked."""

import copy
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs

from unlearnkit.data import ByClass, ByIndex, BySubclass, Corruption, ForgetSpec, KnownCorrupted
from unlearnkit.models import Training
from unlearnkit.utils.errors import CONTROL, ConfigurationError, StoreError, nearest, raise_all, visible
from unlearnkit.utils.files import read_text
from unlearnkit.utils.options import by_label, option
from unlearnkit.utils.structuring import structure

TABLES = ("trials.csv", "summary.csv", "summary.md", "summary.html")
"""What a comparison writes for reading."""
_TAKEN = {"ledger", "passes", "recommended", "trials", *TABLES, "comparison.json"}
"""What commands write to the folder of results, besides one folder for each label."""
_LONGEST_LABEL = 200  # bytes: file systems have 255 for a name, and folders that are written have a longer one


@final
@attrs.frozen(kw_only=True)
class ModelConfig:
    name: str = ""
    factory: str = ""
    options: Mapping[str, Any] = attrs.field(factory=dict)
    checkpoint: str = ""
    allow_pickle: bool = False

    @property
    def source(self) -> str:
        return self.name or self.factory


@final
@attrs.frozen(kw_only=True)
class DataConfig:
    name: str = ""
    factory: str = ""
    options: Mapping[str, Any] = attrs.field(factory=dict)
    normalise: str = option("", choices=("", "model"), doc="model: mean, std and image size of the model's weights")
    workers: int = option(0, at_least=0, doc="processes that load images")


@final
@attrs.frozen(kw_only=True)
class ForgetConfig:
    """What to forget: exactly one of the five."""

    classes: tuple[int | str, ...] = ()
    fine: tuple[int | str, ...] = ()
    indices: tuple[int, ...] = ()
    indices_file: str = ""
    corrupted: Corruption | None = None

    @property
    def given(self) -> dict[str, Any]:
        return {key: value for key, value in attrs.asdict(self, recurse=False).items() if value}

    def spec(self) -> ForgetSpec | None:
        """Make the forget specification; None where nothing is given."""
        if len(self.given) > 1:
            raise ConfigurationError(
                f"forget: expected one of classes, fine, indices, indices_file, corrupted, saw {sorted(self.given)}"
            )
        if self.classes:
            return ByClass(classes=self.classes)
        if self.fine:
            return BySubclass(fine=self.fine)
        if self.indices:
            return ByIndex(indices=self.indices)
        if self.corrupted is not None:
            return KnownCorrupted()
        return ByIndex.from_file(self.indices_file) if self.indices_file else None


@final
@attrs.frozen(kw_only=True)
class ObjectiveConfig:
    """How a batch becomes one loss per sample: in training, importances, methods that train, and evaluation."""

    factory: str = "unlearnkit:CrossEntropy"
    options: Mapping[str, Any] = attrs.field(factory=dict)


@final
@attrs.frozen(kw_only=True)
class ImportanceConfig:
    estimator: str = "diagonal-fisher"
    options: Mapping[str, Any] = attrs.field(factory=dict)
    reference: str = option("full", choices=("full", "retain"), doc="the reference set: D or D_r")
    reference_samples: int = option(0, at_least=0, doc="retained samples that the reference is drawn from; 0: all")
    batch_size: int = option(64, at_least=1, doc="samples per batch")
    shuffle: bool = False
    checkpoint: str = ""
    every: int = option(50, at_least=1, doc="batches between two checkpoints of an importance pass")
    precision: str = option("model", choices=("model", "bfloat16"), doc="precision of the forward passes")


@final
@attrs.frozen(kw_only=True)
class StepConfig:
    """One method of a sequence."""

    name: str
    options: Mapping[str, Any] = attrs.field(factory=dict)


@final
@attrs.frozen(kw_only=True)
class MethodConfig:
    """One edit; each method starts from the original model. Methods that are made of others have ``steps``."""

    name: str
    label: str = attrs.field(default=attrs.Factory(lambda self: self.name, takes_self=True))
    options: Mapping[str, Any] = attrs.field(factory=dict)
    steps: tuple[StepConfig, ...] = ()
    normalise: bool = True
    max_fraction: float = option(1.0, at_least=0, at_most=1, doc="largest fraction of weights that may change")
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    grid: Mapping[str, Any] = attrs.field(factory=dict)
    tuned: bool = False

    def __attrs_post_init__(self) -> None:
        for name, values in self.grid.items():
            if not isinstance(values, list | tuple) or not values:
                raise ConfigurationError(f"grid.{name}: expected a list of at least one value, saw {values!r}")
            if name in self.options:
                raise ConfigurationError(f"grid.{name}: is in options too: remove one of the two")

    @property
    def fixed(self) -> frozenset[str]:
        """Names of the options that are set, those of steps as `nested_options` names them."""
        steps = by_label(self.steps).items()
        return frozenset(self.options).union(*({f"{label}.{name}" for name in s.options} for label, s in steps))


def _seeds(_: Any, field: "attrs.Attribute[Any]", seeds: tuple[int, ...]) -> None:
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigurationError(f"{field.name}: expected different whole numbers ≥ 0, saw {list(seeds)}")


@final
@attrs.frozen(kw_only=True)
class EvaluationConfig:
    batch_size: int = option(256, at_least=1, doc="samples per batch")
    splits: tuple[str, ...] = ("retain-test", "forget-test", "forget-train")
    metrics: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    seed: int = option(0, at_least=0, doc="seed of the metrics")
    retrained: tuple[str, ...] = ()
    retrained_seeds: tuple[int, ...] = attrs.field(default=(), validator=_seeds)
    retrained_folder: str = ""
    page: bool = True


@final
@attrs.frozen(kw_only=True)
class TuningConfig:
    """How ``unlearnkit tune`` searches; see `Tuner` and `TrialTuner` of `unlearnkit.evaluation.tuning`."""

    method: str = ""
    target: str = option("stated", choices=("stated", "retrained", "unseen"), doc="the forget accuracy to aim at")
    forget_accuracy: float = option(0.0, at_least=0, at_most=1, doc="the forget accuracy of target 'stated'")
    budget: float = option(0.02, at_least=0, at_most=1, doc="largest loss of retain accuracy on validation data")
    validation_fraction: float = option(0.2, above=0, at_most=0.9, doc="share of the training set to validate on")
    unseen_fraction: float = option(0.5, above=0, at_most=0.9, doc="share of the test set that sets the target")
    operating: str = ""
    strength: str = ""
    fractions: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    strengths: tuple[float, ...] = (0.0, 0.3, 1.0)
    reestimate: str = option("both", choices=("both", "yes", "no"), doc="re-estimate BatchNorm on retain data")
    rounds: int = option(2, at_least=0, doc="rounds that refine the search around the best")
    trials: int = option(20, at_least=1, doc="edits to try with a method that is not elementwise")


@final
@attrs.frozen(kw_only=True)
class RecommendConfig:
    """What ``unlearnkit recommend`` tries."""

    cost: float = option(0.5, above=0, at_most=1, doc="largest cost of an edit, as a share of the epochs of retraining")
    trials: int = option(6, at_least=1, doc="edits to try with each method")
    methods: tuple[str, ...] = ()


@final
@attrs.frozen(kw_only=True)
class DeletionConfig:
    """How deletion requests are processed; see `unlearnkit.deletion`."""

    folder: str = ""
    salt: str = ""
    method: str = ""
    groups: str = ""
    budget: float = option(0.02, at_least=0, at_most=1, doc="largest loss of accuracy on retained test data")
    keep: int = option(1, at_least=0, doc="earlier models kept for rollback")
    keep_as: str = option("smaller", choices=("smaller", "patch", "model"), doc="how earlier models are stored")
    every: int = option(50, at_least=1, doc="batches between two checkpoints of an importance pass")


@final
@attrs.frozen(kw_only=True)
class ComparisonConfig:
    """What ``unlearnkit compare`` compares: methods × options × seeds × forget targets."""

    training_seeds: tuple[int, ...] = attrs.field(default=(0,), validator=_seeds)
    retrained_seeds: tuple[int, ...] = attrs.field(default=(100, 101, 102), validator=_seeds)
    unlearning_seeds: tuple[int, ...] = attrs.field(default=(0,), validator=_seeds)
    metrics: tuple[str, ...] = ("tug-of-war", "gap-to-retrain")
    forget: tuple[ForgetConfig, ...] = ()
    threads: int = option(1, at_least=1, doc="threads of torch in each process")


@final
@attrs.frozen(kw_only=True)
class Config:
    """An experiment; docs/reference/configuration.md describes every key."""

    output: str
    model: ModelConfig
    data: DataConfig
    forget: ForgetConfig = attrs.field(factory=ForgetConfig)
    objective: ObjectiveConfig = attrs.field(factory=ObjectiveConfig)
    importance: ImportanceConfig = attrs.field(factory=ImportanceConfig)
    method: tuple[MethodConfig, ...] = ()
    evaluation: EvaluationConfig = attrs.field(factory=EvaluationConfig)
    tuning: TuningConfig = attrs.field(factory=TuningConfig)
    recommend: RecommendConfig = attrs.field(factory=RecommendConfig)
    comparison: ComparisonConfig = attrs.field(factory=ComparisonConfig)
    training: Training = attrs.field(factory=Training)
    deletion: DeletionConfig = attrs.field(factory=DeletionConfig)
    seed: int = option(0, at_least=0, doc="seed of the edit and of the order of its data")
    device: str = "auto"

    def __attrs_post_init__(self) -> None:
        labels = [method.label for method in self.method]
        again = sorted({label for label in labels if labels.count(label) > 1})
        if again:
            raise ConfigurationError(
                f"method: expected different labels, saw {again} more than once: give each a label"
            )
        hidden = [label for label in labels if label.startswith(".") or not label.isprintable()]
        bad = hidden or [label for label in labels if not label or Path(label).name != label]
        bad = bad or [f"{label[:20]}…" for label in labels if len(label.encode()) > _LONGEST_LABEL]
        if bad:
            raise ConfigurationError(
                f"method.label: expected the name of a folder, not hidden, of at most {_LONGEST_LABEL} bytes, saw {bad}"
            )
        folders = (self.importance.checkpoint, self.deletion.folder, self.evaluation.retrained_folder)
        taken = [Path(folder).absolute() for folder in folders if folder]
        mine = {label: Path(self.output).absolute() / label for label in labels}
        bad = [label for label, path in mine.items() if any(folder.is_relative_to(path) for folder in taken)]
        bad += [label for label in labels if label.casefold() in _TAKEN]
        if bad:
            raise ConfigurationError(
                f"method.label: expected a folder of its own for each result, saw {bad}, where other files are kept: "
                "choose another label"
            )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and check every key; ``overrides`` such as ``"method.ssd.options.alpha=5"`` take precedence."""
    try:
        raw = tomllib.loads(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read the configuration {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    changed = apply_overrides(raw, overrides)
    raise_all(_unusable(changed, ""), where=str(path), error=ConfigurationError)
    return structure(changed, Config, where=str(path))


def _unusable(value: Any, key: str) -> Iterator[str]:
    """Say which values no setting can have: text that is no name and no path, and numbers of more than 64 bits."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _unusable(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and visible(value, CONTROL) != value:
        yield f"{visible(key)}: expected text without control characters, saw {visible(value)!r}"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield f"{visible(key)}: expected a whole number of 64 bits, saw one of {value.bit_length()}"


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a raw configuration with settings such as ``"method.ssd.options.alpha=5"`` replaced."""
    result = copy.deepcopy(raw)
    for override in overrides:
        path, sign, text = override.partition("=")
        keys = path.strip().split(".")
        if not sign or not all(keys):
            raise ConfigurationError(f"expected a setting as KEY=VALUE, as importance.batch_size=32, saw {override!r}")
        place: Any = result
        for depth, key in enumerate(keys, start=1):
            if not isinstance(place, list | dict):
                raise ConfigurationError(f"{override!r}: {'.'.join(keys[: depth - 1])} has no keys")
            at: Any = _index(place, key, override) if isinstance(place, list) else key
            if depth == len(keys):
                place[at] = _value(text)
            else:
                place = place[at] if isinstance(place, list) else place.setdefault(at, {})
    return result


def _index(items: list[Any], key: str, override: str) -> int:
    if key.isdigit() and int(key) < len(items):
        return int(key)
    labels = [str(i.get("label", i.get("name", ""))) if isinstance(i, dict) else "" for i in items]
    if labels.count(key) != 1:
        raise ConfigurationError(f"{override!r}: no single item is called {key!r}{nearest(key, labels)}")
    return labels.index(key)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text.strip()
