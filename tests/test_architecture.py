"""The house rules, checked on the code."""

import abc
import ast
import enum
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from torch import nn

import unlearnkit
from tests.docs.api_page import FOLDERS
from unlearnkit import PluginManager

ROOT = Path(__file__).parent.parent
FRAMEWORK = sorted((ROOT / "unlearnkit").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
PUBLIC = {"unlearnkit", *(f"unlearnkit.{face}" for face in FOLDERS)}


def part(module):
    """Return the folder of the framework that a module is in, "" for the package itself."""
    names = module.split(".")
    return names[1] if len(names) > 1 else ""


def module_of(path, base):
    names = path.relative_to(base).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports(path, *, deferred=True):
    """Yield (module, name or None) of every import; without ``deferred`` only those that run on import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if deferred else (n for s in tree.body if not _is_function(s) for n in ast.walk(s))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def _is_function(statement):
    if isinstance(statement, ast.ClassDef):  # a class body runs on import, its methods do not
        return all(_is_function(s) or not isinstance(s, ast.Import | ast.ImportFrom) for s in statement.body)
    return isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)


def _ids(path):
    return str(path.relative_to(ROOT))


def test_imports_point_one_way_and_form_no_circle():
    """The contracts of import-linter in pyproject.toml."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    # in a process of its own, because it disables every logger that exists
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_imports_testing_not_even_inside_a_function():
    guilty = [
        str(path)
        for path in [*FRAMEWORK, *PLUGINS]
        if part(module_of(path, ROOT)) != "testing"
        and any(f"{module}.{name}".startswith("unlearnkit.testing") for module, name in imports(path))
    ]
    assert guilty == []


def test_pytest_and_hypothesis_stay_inside_testing():
    guilty = [
        str(path)
        for path in [*FRAMEWORK, *PLUGINS]
        if part(module_of(path, ROOT)) != "testing"
        and any(module.split(".")[0] in {"pytest", "_pytest", "hypothesis"} for module, _ in imports(path))
    ]
    assert guilty == []


@pytest.mark.parametrize("path", PLUGINS, ids=_ids)
def test_a_plugin_imports_public_names_only_and_no_other_plugin(path):
    own = path.relative_to(ROOT / "plugins").parts[0]
    for module, name in imports(path):
        package = module.split(".")[0]
        if module in PUBLIC and name is not None:
            public = importlib.import_module(module).__all__
            assert name in public, f"{path.name} imports {module}.{name}, which is not public"
        elif package == "unlearnkit":
            assert module in PUBLIC, f"{path.name} imports {module}, which is not public"
        else:
            assert not package.startswith("unlearnkit") or package == own, f"{own} imports {package}"


# Classes


def _modules():
    for package in ("unlearnkit", *sorted(p.parent.name for p in (ROOT / "plugins").glob("*/__init__.py"))):
        module = importlib.import_module(package)
        yield module
        for found in pkgutil.walk_packages(module.__path__, f"{package}."):
            if not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


def _exempt(cls):
    return (
        inspect.isabstract(cls)
        or issubclass(cls, BaseException | enum.Enum | nn.Module)
        or getattr(cls, "_is_protocol", False)
    )


def test_every_class_is_abstract_or_final():
    open_classes = [
        f"{module.__name__}.{name}"
        for module in _modules()
        for name, cls in vars(module).items()
        if inspect.isclass(cls)
        and cls.__module__ == module.__name__
        and not _exempt(cls)
        and not cls.__dict__.get("__final__", False)
    ]
    assert open_classes == []


def test_open_class_is_detected():
    class Open:
        pass

    class Abstract(abc.ABC):
        @abc.abstractmethod
        def method(self):
            """Do."""

    assert not _exempt(Open)
    assert _exempt(Abstract)
    assert "__final__" not in Open.__dict__


# Sizes, names, the public list


def test_the_public_list_is_sorted_and_complete():
    """What type checkers see, what is loaded at run time, and ``__all__`` are the same names from the same modules."""
    imported = {n: m for m, n in imports(ROOT / "unlearnkit" / "__init__.py") if m.startswith("unlearnkit")}
    del imported["kernel_source"]  # used there, not offered
    assert list(unlearnkit.__all__) == sorted(unlearnkit.__all__)
    assert set(unlearnkit.__all__) == set(imported)
    lazy = {n: m for n, m in imported.items() if m != "unlearnkit.utils.errors"}  # errors need no torch
    assert {n: f"unlearnkit.{folder}" for n, folder in unlearnkit._FOLDER.items()} == lazy
    assert all(getattr(unlearnkit, name) is not None for name in unlearnkit.__all__)


@pytest.mark.parametrize("face", FOLDERS)
def test_the_public_list_of_a_folder_is_sorted_and_complete(face):
    module = importlib.import_module(f"unlearnkit.{face}")
    assert list(module.__all__) == sorted(module.__all__)
    assert set(module.__all__) == {n for m, n in imports(ROOT / "unlearnkit" / face / "__init__.py")}
    assert module.__doc__


def test_the_package_root_holds_few_entries():
    entries = {p.name for p in (ROOT / "unlearnkit").iterdir()} - {"__pycache__"}
    assert len(entries) <= 18, sorted(entries)


def _strings(path):
    """Yield the string constants of a file that are not docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and _documented(node)}
    yield from (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    )


def _documented(node):
    return bool(node.body) and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)


def test_the_framework_knows_no_method_by_name():
    methods = {e.name for e in PluginManager().provided("unlearner")}
    assert {"prune", "binary-mask", "ssd"} <= methods
    guilty = {
        (str(path.relative_to(ROOT)), text)
        for path in FRAMEWORK
        if path.name != "demo.py"
        for text in _strings(path)
        if text in methods or re.search(r"unlearnkit_(?!register|before|after)[a-z]", text)
    }
    assert guilty == set()


# The package


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_wheel_contains_every_module_and_entry_point():
    folders = sorted(f"plugins/{p.parent.name}" for p in (ROOT / "plugins").glob("*/__init__.py"))
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == [*folders, "unlearnkit"]
    targets = PYPROJECT["project"]["entry-points"]["unlearnkit"].values()
    packages = {"unlearnkit", *(f.removeprefix("plugins/") for f in folders)}
    assert {t.split(".")[0] for t in targets} == packages - {"unlearnkit_adapters"}  # which has functions, and no hook
    assert all(importlib.util.find_spec(target) for target in targets)


def test_every_shipped_method_has_an_entry_point_of_its_own():
    files = {p.stem for p in (ROOT / "plugins" / "unlearnkit_methods").glob("*.py")} - {"__init__"}
    targets = PYPROJECT["project"]["entry-points"]["unlearnkit"]
    for stem in files:
        assert targets[stem.replace("_", "-")] == f"unlearnkit_methods.{stem}"


def test_every_import_is_a_declared_dependency():
    names = {"sklearn": "scikit-learn", "typing_extensions": "typing-extensions", "PIL": "pillow"}
    names["mlflow"] = "mlflow-skinny"
    project = PYPROJECT["project"]
    declared = {re.split(r"[^\w-]", text)[0].lower() for text in project["dependencies"]}
    declared.add("triton")  # comes with torch on CUDA; its import is guarded
    extras = project["optional-dependencies"]
    named = ("notebook", "tune", "peft", "mlflow", "wandb")  # an error names them
    optional = [text for extra in named for text in extras[extra]]
    declared |= {re.split(r"[^\w-]", text)[0] for text in optional}
    for_tests = declared | {re.split(r"[^\w-]", t)[0] for t in extras["testing"]}
    for path in [*FRAMEWORK, *PLUGINS]:
        allowed = for_tests if part(module_of(path, ROOT)) == "testing" else declared
        for module, _ in imports(path):
            package = module.split(".")[0]
            if package not in sys.stdlib_module_names and not package.startswith("unlearnkit"):
                assert names.get(package, package).lower() in allowed, f"{path.name} imports {package}: declare it"


def test_repository_has_the_agreed_top_level_folders():
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))}
    assert {"unlearnkit", "plugins", "tests", "docs"} <= folders
    assert not folders & {"examples", "scripts", "src"}
