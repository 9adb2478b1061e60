"""The page of the laws is made from the laws."""

import subprocess
import sys
from pathlib import Path

from unlearnkit.testing.laws import LAWS
from unlearnkit.testing.page import laws_page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "laws.md"


def test_the_page_in_the_docs_is_the_one_that_the_laws_make():
    assert PAGE.read_text(encoding="utf-8") == laws_page(), "run: python -m unlearnkit.testing > docs/reference/laws.md"


WITHOUT_PYTEST = """
import runpy, sys
sys.modules["pytest"] = None  # importing it is an error from here on
from unlearnkit.testing import check_unlearner
from unlearnkit_methods.prune import Prune
check_unlearner(Prune(), examples=2)
runpy.run_module("unlearnkit.testing", run_name="__main__")
"""


def test_the_command_prints_it_and_neither_it_nor_the_checks_need_pytest():
    command = [sys.executable, "-c", WITHOUT_PYTEST]
    run = subprocess.run(command, capture_output=True, check=True, timeout=300)
    assert run.stdout.decode() == laws_page()


def test_every_law_stands_on_it_twice():
    lines = laws_page().splitlines()
    for laws in LAWS.values():
        for law in laws:
            assert sum(f"`{law.name}`" in line and line.startswith("|") for line in lines) >= 2


def test_names_of_laws_are_unique_within_what_one_object_owes():
    for kind, laws in LAWS.items():
        inherited = [law.name for base in kind.__mro__ for law in LAWS.get(base, ())]
        assert len(inherited) == len(set(inherited)), laws
