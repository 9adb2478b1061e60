"""The page of the methods agrees with the classes and the measured trials."""

import re
from pathlib import Path

import pytest

from tests.benchmarks import methods_page
from tests.benchmarks.methods import SPLITS, gap, read, settings, shipped
from unlearnkit.utils.options import options_of

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "methods.md"


@pytest.fixture(scope="module")
def shown():
    return PAGE.read_text(encoding="utf-8")


def test_page_is_up_to_date(shown):
    made = re.sub(r"\n{3,}", "\n\n", methods_page.page(read()))
    assert shown == made, "run: python -m tests.benchmarks.methods_page > docs/reference/methods.md"


@pytest.mark.parametrize("role", ["unlearner", "estimator"])
def test_every_shipped_class_has_a_section_with_all_its_options_and_a_source(shown, role):
    for entry in shipped(role):
        (part,) = re.findall(rf"^### `{entry.name}`\n(.*?)(?=^##|\Z)", shown, re.MULTILINE | re.DOTALL)
        assert re.findall(r"^\| `(\w+)`", part, re.MULTILINE) == [o.name for o in options_of(entry.cls)]
        assert re.search(r"^- source: \S", part, re.MULTILINE)


def test_every_shipped_method_and_estimator_is_measured():
    known = {(setting.method, setting.estimator) for setting in settings()}
    assert {entry.name for entry in shipped("unlearner")} <= {method for method, _ in known}
    assert {entry.name for entry in shipped("estimator")} == {estimator for _, estimator in known}


def test_every_row_of_the_table_is_of_the_same_trials():
    rows = read()
    seeds = methods_page.complete_seeds(rows)
    assert seeds
    for setting in settings():
        mine = [(r["seed"], r["digit"]) for r in rows if r["setting"] == str(setting) and r["seed"] in seeds]
        assert sorted(mine) == sorted((seed, str(digit)) for seed in seeds for digit in range(10)), str(setting)


def test_only_methods_that_use_labels_are_marked():
    said = {entry.name: methods_page.looks_at_labels(entry.cls) for entry in shipped("unlearner")}
    assert {name for name, looks in said.items() if looks} == {
        *("finetune", "neg-grad-plus", "retrain", "salun", "scrub", "capped-neg-grad", "class-projection", "l1-sparse"),
        *("random-label", "reset-last", "shrink-perturb", "ssd-depth", "unsir", "grad-diff", "npo", "simnpo", "undial"),
    }


def test_summary_of_trials_worked_example():
    means = {"7": dict.fromkeys(SPLITS, 0.5)}
    rows = [
        {"digit": "7", "moved": moved, "changed": changed, "seconds": "2", "note": note, **dict.fromkeys(SPLITS, a)}
        for a, moved, changed, note in [
            ("0.5", "0", "0", ""),
            ("0.6", "0", "0.1", ""),
            ("0.2", "0.9", "0.3", ""),
            ("0.9", "0", "0", "NonFiniteError"),
        ]
    ]
    assert gap(rows[2], means["7"]) == pytest.approx(0.3)
    cells = methods_page.summary(rows, means)
    assert cells[:3] == ["0.550", "0.550", "0.200"]  # of 0, 0.1, 0.3 and 0.4
    assert cells[4:7] == ["5.0 %", "0.0 %", "2.00"]
    assert cells[7] == "1 × changed nothing, 1 × changed no prediction, 1 × destroyed the model, 1 × failed"
