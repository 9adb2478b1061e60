"""The house rules that a reader of the code relies on, checked on the code itself."""

import abc
import ast
import enum
import importlib
import inspect
import pkgutil
import re
import sys
import tomllib
from pathlib import Path

import pytest
from torch import nn

import unlearnkit
from unlearnkit import PluginManager

ROOT = Path(__file__).parent.parent
FRAMEWORK = sorted((ROOT / "unlearnkit").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))

# Whoever stands in a line may import what stands in the lines above it, and its own package. "" is the public API.
LAYERS = """
errors frozen memory progress rng spare steady suggest tracing uncertainty
shards
averaged batches chunks compiled factories files mixing options overrides parameters structure
saving
checkpoint discovery feeding journal objective packed patch provenance ranks sealed
fused
guard importance language precision report sharing sweep
importance_file sharded_file evidence metric estimator scores
resuming
distributed unlearner distillation finetuning
elementwise fisher
hookspecs registry
builtins plugins
pipeline

data models training evaluation store
config console manifest
reporting experiment
gallery references
runner scaffold trainer
deletion tuning
comparison
demo
commands
cli
__main__
"""
LEVEL = {name: i for i, line in enumerate(LAYERS.strip("\n").split("\n")) for name in line.split() or [""]}


def part(module):
    """Return the part of the framework that a module belongs to: ``unlearnkit.fisher.general`` is of ``fisher``."""
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


def imported_parts(path):
    for module, name in imports(path, deferred=False):
        if module.split(".")[0] == "unlearnkit":
            inside = module == "unlearnkit" and name in LEVEL
            yield name if inside else part(module)


def _ids(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FRAMEWORK, ids=_ids)
def test_imports_point_to_the_left_only(path):
    me = part(module_of(path, ROOT))
    if me == "testing":
        return
    assert me in LEVEL, f"{path.name} is new: give it a place in LAYERS and in docs/explanation/architecture.md"
    if me == "":
        return  # the public API: a list of names, checked below
    wrong = [other for other in imported_parts(path) if other != me and LEVEL.get(other, 99) >= LEVEL[me]]
    assert not wrong, f"{me} must not import {wrong}: it stands to the left of them, or beside them"


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


def test_the_walk_sees_what_it_should(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import unlearnkit.cli\nfrom unlearnkit import plugins, Importance\n"
        "class C:\n    def f(self):\n        import unlearnkit.demo\n"
        "def g():\n    from unlearnkit.pipeline import Pipeline\n"
    )
    assert list(imported_parts(path)) == ["cli", "plugins", ""]
    assert ("unlearnkit.pipeline", "Pipeline") in list(imports(path))
    assert LEVEL["errors"] < LEVEL["importance"] < LEVEL["pipeline"] < LEVEL[""] < LEVEL["data"] < LEVEL["cli"]


@pytest.mark.parametrize("path", PLUGINS, ids=_ids)
def test_a_plugin_imports_public_names_only_and_no_other_plugin(path):
    own = path.relative_to(ROOT / "plugins").parts[0]
    for module, name in imports(path):
        package = module.split(".")[0]
        if module in {"unlearnkit", "unlearnkit.testing"} and name is not None:
            public = importlib.import_module(module).__all__
            assert name in public, f"{path.parent.name} imports {module}.{name}, which is not public"
        elif package == "unlearnkit":
            assert module == "unlearnkit", f"{path.parent.name} imports {module}, which is not public"
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


def test_an_open_class_would_be_seen():
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


@pytest.mark.parametrize("path", [*FRAMEWORK, *PLUGINS], ids=_ids)
def test_no_file_is_over_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_public_list_is_sorted_and_complete():
    imported = {
        name for module, name in imports(ROOT / "unlearnkit" / "__init__.py") if module.startswith("unlearnkit")
    }
    assert list(unlearnkit.__all__) == sorted(unlearnkit.__all__)
    assert set(unlearnkit.__all__) == imported
    assert all(getattr(unlearnkit, name) is not None for name in unlearnkit.__all__)


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


def test_the_wheel_carries_the_framework_and_every_plugin_and_each_entry_point_is_there():
    folders = sorted(f"plugins/{p.parent.name}" for p in (ROOT / "plugins").glob("*/__init__.py"))
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == [*folders, "unlearnkit"]
    targets = PYPROJECT["project"]["entry-points"]["unlearnkit"].values()
    theirs = sorted(t for t in targets if not t.startswith("unlearnkit."))
    assert theirs == [f.removeprefix("plugins/") for f in folders]
    assert all(importlib.util.find_spec(target) for target in targets)


def test_whatever_is_imported_is_declared():
    names = {"sklearn": "scikit-learn", "typing_extensions": "typing-extensions", "PIL": "pillow"}
    project = PYPROJECT["project"]
    declared = {re.split(r"[^\w-]", text)[0].lower() for text in project["dependencies"]}
    declared.add("triton")  # comes with torch where there is CUDA, and is looked for before it is imported
    for_tests = declared | {re.split(r"[^\w-]", t)[0] for t in project["optional-dependencies"]["testing"]}
    for path in [*FRAMEWORK, *PLUGINS]:
        allowed = for_tests if part(module_of(path, ROOT)) == "testing" else declared
        for module, _ in imports(path):
            package = module.split(".")[0]
            if package not in sys.stdlib_module_names and not package.startswith("unlearnkit"):
                assert names.get(package, package).lower() in allowed, f"{path.name} imports {package}: declare it"


def test_the_top_level_holds_what_was_agreed():
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))}
    assert {"unlearnkit", "plugins", "tests", "docs"} <= folders
    assert not folders & {"examples", "scripts", "src"}
