"""Experiments from a TOML file: run, tune, train, compare, the retrained references, the demonstration."""

from unlearnkit.experiments.comparison import (
    Comparison,
    Event,
    Statistic,
    Trial,
    TrialResult,
    VariantSummary,
    compare,
    summarise,
    trials_of,
)
from unlearnkit.experiments.config import Config, load_config
from unlearnkit.experiments.demo import demo
from unlearnkit.experiments.retrained import Recipe, ReferenceStore, retrained_models
from unlearnkit.experiments.run import run
from unlearnkit.experiments.train import train_original
from unlearnkit.experiments.tune import tune

__all__ = [
    "Comparison",
    "Config",
    "Event",
    "Recipe",
    "ReferenceStore",
    "Statistic",
    "Trial",
    "TrialResult",
    "VariantSummary",
    "compare",
    "demo",
    "load_config",
    "retrained_models",
    "run",
    "summarise",
    "train_original",
    "trials_of",
    "tune",
]
