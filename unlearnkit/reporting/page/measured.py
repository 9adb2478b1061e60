"""Every metric in one table: the value of each model, or the reason why there is none."""

from collections.abc import Mapping

from unlearnkit.reporting.page.parts import Table, number

_MODELS = ("unlearned", "original", "retrained")


def metric_table(metrics: Mapping[str, Mapping[str, float | None]], reasons: Mapping[str, Mapping[str, str]]) -> Table:
    """Put the values of one quantity side by side.

    Example:
        >>> table = metric_table({"m": {"AUC": 0.5, "original AUC": None}}, {"m": {"original AUC": "no model"}})
        >>> table.rows
        (('m: AUC', '0.500', 'no model', '–'),)
    """
    rows = []
    for metric, values in metrics.items():
        cells: dict[str, dict[str, str]] = {}
        for name, value in values.items():
            first, _, rest = name.partition(" ")
            model, quantity = (first, rest) if first in _MODELS and rest else ("unlearned", name)
            reason = reasons.get(metric, {}).get(name, "no reason given")
            cells.setdefault(quantity, {})[model] = reason if value is None else number(value)
        rows += [(f"{metric}: {quantity}", *(row.get(m, "–") for m in _MODELS)) for quantity, row in cells.items()]
    return Table(caption="Every metric that was asked for", header=("metric", *_MODELS), rows=tuple(rows))
