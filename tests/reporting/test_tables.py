"""Tables for the terminal."""

import io
import json
import re
import tomllib

import attrs
import pytest
from rich.console import Console

from unlearnkit import PluginManager
from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.plugins.entry_points import Discovered, Problem
from unlearnkit.reporting import (
    RunRecord,
    details_text,
    method_details,
    method_table,
    plugin_table,
    run_table,
    tensor_table,
)
from unlearnkit.unlearning.report import Report, TensorChange


def text(table, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


REPORT = Report(
    method="m",
    tensors=(TensorChange(name="w", size=4000, changed=1000), TensorChange(name="empty", size=0, changed=0)),
    seconds={"edit": 1.0, "forget importance": 0.5, "evaluation": 100.0},
)


def test_runs():
    before = {"retain-test": LossAndAccuracy(loss=1, accuracy=0.75, samples=4)}
    after = {"retain-test": LossAndAccuracy(loss=1, accuracy=None, samples=4)}
    shown = text(run_table([RunRecord(label="one", report=REPORT, before=before, after=after)]))
    assert "0.750→–" in shown
    assert "1,000" in shown
    assert "25 %" in shown
    assert "1.50" in shown


def test_a_label_is_no_markup():
    report = attrs.evolve(REPORT, tensors=(TensorChange(name="[b]w[/red]", size=1, changed=1),))
    assert "[b]one[/red]" in text(run_table([RunRecord(label="[b]one[/red]", report=report)]))
    assert "[b]w[/red]" in text(tensor_table(report))


def test_tensors():
    shown = text(tensor_table(REPORT))
    assert "m changed 1000 of 4000 weights (25 %)." in " ".join(shown.split())
    assert "empty" in shown


def test_methods_show_what_each_needs():
    shown = text(method_table("methods", PluginManager().provided("unlearner")), width=200)
    assert re.search(r"finetune +retain data +\S", shown)


def test_one_method_in_full():
    entry = next(e for e in PluginManager().provided("unlearner") if e.name == "ssd")
    found = method_details("unlearner", entry)
    shown = details_text(found)
    assert "alpha (α) = 10.0 [> 0]: selection weighting" in shown
    assert "source: Foster, Schoepf and Brintrup 2024" in shown
    assert tomllib.loads(found["toml"]) == {
        "method": [{"name": "ssd", "options": {"alpha": 10.0, "lam": 1.0, "epsilon": 0.0}}]
    }
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("kind", ["unlearner", "estimator", "metric"])
def test_each_snippet_is_toml_with_the_defaults(kind):
    for entry in PluginManager().provided(kind):
        found = method_details(kind, entry)
        text = found["toml"]
        assert entry.name in text
        required = [o["name"] for o in found["options"] if o["required"]]
        assert not required or all(f"{name} =" not in text for name in required)
        tomllib.loads(text)


def test_plugins_show_what_is_wrong():
    problem = Problem(plugin="bad", origin="foo 1.0", stage="import", error=ImportError("no module named bar"))
    plugins = [Discovered(name="bad", problem=problem), Discovered(name="good", distribution="foo", version="1.0")]
    shown = text(plugin_table(plugins, [problem], {"good": ["unlearner 'fine'"]}), width=160)
    assert "import: no module named bar" in shown
    assert "usable" in shown
    assert "unlearner 'fine'" in shown
