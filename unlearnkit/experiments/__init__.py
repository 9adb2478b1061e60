"""Experiments from a TOML file: run, tune, recommend, train, compare, the demonstration."""

from unlearnkit.experiments.comparison.compare import Comparison, compare
from unlearnkit.experiments.comparison.tables import summarise
from unlearnkit.experiments.config import Config, load_config
from unlearnkit.experiments.demo import demo
from unlearnkit.experiments.recommend import recommend
from unlearnkit.experiments.run import run
from unlearnkit.experiments.train import train_original
from unlearnkit.experiments.tune import tune

__all__ = [
    "Comparison",
    "Config",
    "compare",
    "demo",
    "load_config",
    "recommend",
    "run",
    "summarise",
    "train_original",
    "tune",
]
