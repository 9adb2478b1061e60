"""The page of the laws is generated from the laws."""

import importlib
import runpy
import sys
from pathlib import Path

from unlearnkit_methods.prune import Prune

import unlearnkit.testing
from tests.docs.laws_page import laws_page
from unlearnkit.testing.law import LAWS

TESTING, WRITER = "unlearnkit.testing", "tests.docs.laws_page"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "laws.md"


def test_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == laws_page(), (
        "run: python -m tests.docs.laws_page > docs/reference/laws.md"
    )


def test_command_prints_the_page_without_pytest(monkeypatch, capfd):
    expected = laws_page()
    monkeypatch.setattr(unlearnkit, "testing", unlearnkit.testing)  # put back afterwards, with the modules
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "pytest" or name.startswith((TESTING, WRITER))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytest", None)  # importing it is an error from here on
    importlib.import_module(TESTING).check_unlearner(Prune(), examples=2)
    runpy.run_module(WRITER, run_name="__main__")
    assert capfd.readouterr().out == expected


def test_every_law_has_two_table_rows():
    lines = laws_page().splitlines()
    for laws in LAWS.values():
        for law in laws:
            assert sum(f"`{law.name}`" in line and line.startswith("|") for line in lines) >= 2


def test_law_names_are_unique_for_each_object():
    for kind, laws in LAWS.items():
        inherited = [law.name for base in kind.__mro__ for law in LAWS.get(base, ())]
        assert len(inherited) == len(set(inherited)), laws
