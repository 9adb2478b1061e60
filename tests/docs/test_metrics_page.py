"""The page of the metrics agrees with the classes."""

import math
from pathlib import Path

from unlearnkit.evaluation import metrics

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


def number(value):
    return {math.inf: "∞", -math.inf: "−∞"}.get(value, f"{value:.4g}")


def row(cls):
    traits, what = cls.traits, cls.__doc__.strip().partition("\n")[0].replace("|", "\\|")
    span = f"{number(traits.low)} … {number(traits.high)} {traits.unit}"
    cells = (f"`{cls.name}`", what, span, traits.better, traits.source, traits.cost, traits.trust)
    return f"| {' | '.join(cells)} |"


def test_every_metric_has_its_row():
    expected = sorted(row(getattr(metrics, name)) for name in metrics.__all__)
    shown = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert shown == expected, "the rows should be:\n" + "\n".join(expected)
