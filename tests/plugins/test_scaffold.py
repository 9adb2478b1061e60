"""`unlearnkit new-plugin` writes a distribution that installs, lists, runs and passes its tests as it is."""

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import attrs
import pytest
from typer.testing import CliRunner

from unlearnkit import ConfigurationError, PluginManager, StoreError
from unlearnkit.cli.app import app
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run
from unlearnkit.plugins.scaffold import KINDS, new_plugin

ROOT = Path(__file__).parents[2]
PUBLIC = {"unlearnkit", *(f"unlearnkit.{face}" for face in ("data", "importance", "models", "testing", "unlearning"))}
each_kind = pytest.mark.parametrize("kind", KINDS)
ROLE = {"elementwise": "unlearner", "training": "unlearner", "estimator": "estimator", "metric": "metric"}
"""Of the kinds that have a name in a configuration."""
USE = {
    "elementwise": ['method=[{name="my-thing", options={alpha=2.0}}]'],
    "training": ['method=[{name="my-thing", options={learning_rate=1e-2}}]'],
    "estimator": ['importance.estimator="my-thing"', 'method=[{name="ssd", options={alpha=2.0}}]'],
    "metric": ['evaluation.metrics=["my-thing"]', 'method=[{name="ssd", options={alpha=2.0}}]'],
    "kernel": ['method=[{name="ssd", options={alpha=2.0}}]'],
    "objective": ['method=[{name="ssd", options={alpha=2.0}}]'],
}


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())


@pytest.fixture
def written(request, tmp_path, monkeypatch):
    """Write a plugin and put it on the path as an installation would; afterwards remove its modules."""
    folder = new_plugin("my-thing", kind=request.param, output=tmp_path)
    about = project(folder)["project"]
    info = folder / "unlearnkit_my_thing-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    points = "".join(
        f"{name} = {target}\n" for name, target in about.get("entry-points", {"unlearnkit": {}})["unlearnkit"].items()
    )
    (info / "entry_points.txt").write_text(f"[unlearnkit]\n{points}")
    monkeypatch.syspath_prepend(folder)
    yield request.param, folder
    for name in [n for n in sys.modules if "my_thing" in n]:
        del sys.modules[name]


each_written = pytest.mark.parametrize("written", KINDS, indirect=True)


@each_kind
def test_the_tree_is_a_complete_typed_distribution(tmp_path, kind):
    folder = new_plugin("my-thing", kind=kind, output=tmp_path / "new")
    assert folder == tmp_path / "new" / "unlearnkit-my-thing"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "tests/test_unlearnkit_my_thing.py",
        "unlearnkit_my_thing/__init__.py",
        "unlearnkit_my_thing/py.typed",
    ]
    about = project(folder)
    assert about["project"]["name"] == "unlearnkit-my-thing"
    entry_points = {"unlearnkit": {"my-thing": "unlearnkit_my_thing"}}
    assert about["project"].get("entry-points") == (None if kind == "objective" else entry_points)
    assert about["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["unlearnkit_my_thing"]
    assert KINDS[kind] in (folder / "README.md").read_text()
    for path in folder.rglob("*"):
        assert path.is_dir() or "$" not in path.read_text()


@each_kind
def test_only_public_names_are_used_and_everything_is_annotated(tmp_path, kind):
    folder = new_plugin("my-thing", kind=kind, output=tmp_path)
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module.startswith("unlearnkit")
                and "my_thing" not in node.module
            ):
                assert node.module in PUBLIC
                public = importlib.import_module(node.module).__all__
                assert {alias.name for alias in node.names} <= set(public)
            if isinstance(node, ast.FunctionDef) and path.name == "__init__.py":
                assert node.returns is not None
                assert all(a.annotation is not None for a in node.args.args if a.arg != "self")


@each_written
def test_its_tests_pass_as_written(written):
    kind, folder = written
    path = folder / "tests" / "test_unlearnkit_my_thing.py"
    spec = importlib.util.spec_from_file_location("test_unlearnkit_my_thing", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    tests = [test for name, test in vars(module).items() if name.startswith("test_") and name != "test_contract"]
    assert len(tests) >= 2
    for test in tests:
        test()
    if kind in {"kernel", "objective"}:
        return
    params = module.test_contract.pytestmark[0].args[1]
    assert len(params) >= {"metric": 2, "estimator": 6}.get(kind, 10)
    for param in params:
        subject, law = param.values
        attrs.evolve(law, examples=3).check(subject)  # a few cases here; all of them in the slow test


@each_written
def test_docstring_example_of_the_scaffold_is_correct(written):
    import doctest

    _, folder = written
    result = doctest.testmod(importlib.import_module("unlearnkit_my_thing"))
    assert (result.failed, result.attempted > 0) == (0, True)
    assert folder.name in importlib.import_module("unlearnkit_my_thing").__file__


@pytest.mark.parametrize("written", ROLE, indirect=True)
def test_it_runs_by_name(written, digits_toml, tmp_path):
    kind, _ = written
    manager = PluginManager()
    entry = next(e for e in manager.provided(ROLE[kind]) if e.name == "my-thing")
    assert entry.cls.__name__ == "MyThing"
    assert entry.plugin.origin == "unlearnkit-my-thing 0.1.0"
    [record] = list(run(load_config(digits_toml, USE[kind]), plugins=manager))
    assert record.report.changed > 0
    if kind == "metric":
        assert record.metrics["my-thing"]["distance"] > 0
    if kind == "estimator":
        assert {e.fingerprint.estimator for e in record.report.evidence} == {"my-thing"}


@pytest.mark.parametrize(
    "name", ["", "My-thing", "my_thing", "9lives", "my thing", "my-", "my--thing", "../up", "-x", "ü"]
)
def test_a_bad_name_is_refused_and_nothing_is_written(tmp_path, name):
    with pytest.raises(ConfigurationError, match=r"lower-case letters, digits and single hyphens, as 'my-method', saw"):
        new_plugin(name, output=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_and_a_folder_that_is_there_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"elementwise, training, .* saw 'metrics'; did you mean 'metric'"):
        new_plugin("my-thing", kind="metrics", output=tmp_path)
    folder = new_plugin("my-thing", output=tmp_path)
    (folder / "README.md").write_text("mine")
    with pytest.raises(StoreError, match=r"unlearnkit-my-thing already exists: choose another"):
        new_plugin("my-thing", output=tmp_path)
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "ssd",
            r"the plugin 'ssd' of unlearnkit \S+ is installed, unlearnkit \S+ provides it in ssd.py; choose another",
        ),
        ("unlearnkit", r"the plugin 'unlearnkit' of unlearnkit \S+ is installed"),
        ("output-norm", r"unlearnkit \S+ provides it in loss_free.py"),
        ("diagonal-fisher", r"unlearnkit \S+ provides it in diagonal.py"),
        ("loss-and-accuracy", r"unlearnkit \S+ provides it in \w+.py"),
        ("methods", r"the module unlearnkit_methods is installed"),
        ("good", r"the plugin 'good' of fake-good 1.0 is installed"),
        ("fine", r"fake-classes 5.0 provides it in fake_classes.py"),
    ],
)
def test_a_name_that_is_taken_is_refused_and_nothing_is_written(tmp_path, monkeypatch, name, said):
    monkeypatch.syspath_prepend(ROOT / "tests" / "fixtures" / "site")
    loaded = {module for module in sys.modules if module.startswith(("unlearnkit", "fake_"))}
    with pytest.raises(ConfigurationError, match=rf"expected a new name, saw '{name}': .*{said}"):
        new_plugin(name, output=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert {module for module in sys.modules if module.startswith(("unlearnkit", "fake_"))} == loaded


def test_a_plugin_is_written_without_torch(tmp_path):
    script = (
        "import sys; from unlearnkit.plugins.scaffold import new_plugin; new_plugin('my-thing', output=sys.argv[1])"
    )
    script += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 0
    assert (tmp_path / "unlearnkit-my-thing").is_dir()


def test_a_distribution_that_is_installed_without_a_plugin_of_the_name_is_refused(tmp_path, monkeypatch):
    info = tmp_path / "site" / "Unlearnkit_My.Thing-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Unlearnkit_My.Thing\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(ConfigurationError, match=r"the distribution unlearnkit-my-thing is installed"):
        new_plugin("my-thing", output=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "folder", "cls"),
    [
        ("a", "unlearnkit-a", "A"),
        ("unlearnkit-fast", "unlearnkit-fast", "Fast"),
        ("tensor", "unlearnkit-tensor", "TensorPlugin"),
        ("unlearner", "unlearnkit-unlearner", "UnlearnerPlugin"),
        ("none", "unlearnkit-none", "NonePlugin"),
        ("top2-of-3", "unlearnkit-top2-of-3", "Top2Of3"),
    ],
)
def test_the_names_of_package_and_class_are_made_from_the_name(tmp_path, name, folder, cls):
    made = new_plugin(name, output=tmp_path)
    assert made.name == folder
    tree = ast.parse((made / folder.replace("-", "_") / "__init__.py").read_text())
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == [cls]


def test_the_command_says_what_to_do_next(tmp_path):
    result = CliRunner().invoke(app, ["new-plugin", "my-thing", "--kind", "metric", "--output", str(tmp_path)])
    assert result.exit_code == 0
    assert f"next: pip install -e '{tmp_path}/unlearnkit-my-thing[test]'" in result.output
    again = CliRunner().invoke(app, ["new-plugin", "my-thing", "--output", str(tmp_path)])
    assert again.exit_code == 2
    assert again.output.startswith("error: ")
    assert "already exists" in again.output
    bad = CliRunner().invoke(app, ["new-plugin", "My Thing", "--output", str(tmp_path)])
    assert (bad.exit_code, "as 'my-method', saw 'My Thing'" in bad.output) == (2, True)


# End to end: wheels, an environment, the command line


def call(*command, cwd=None):
    clean = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "UNLEARNKIT_DISABLE_PLUGINS"}}
    env = {**clean, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1", "COLUMNS": "200"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A fresh environment with unlearnkit's own wheel; torch and the others are borrowed from this one."""
    root = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", root / "wheels", ROOT)
    call(sys.executable, "-m", "venv", "--without-pip", root / "venv")
    python = root / "venv" / "bin" / "python"
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A plain path, not a site: the editable installation of the borrowed environment is not seen.
    (site / "borrowed.pth").write_text(str(Path(attrs.__file__).parent.parent))
    [wheel] = (root / "wheels").glob("unlearnkit-*.whl")
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--force-reinstall", wheel)
    where = call(python, "-c", "import unlearnkit; print(unlearnkit.__file__)", cwd=root)
    assert str(site) in where
    return python, root


@pytest.mark.slow
@each_kind
def test_scaffold_builds_installs_lists_tests_and_runs_in_a_fresh_environment(environment, digits_toml, kind, tmp_path):
    python, _ = environment
    command = python.parent / "unlearnkit"
    name = f"my-{kind}"
    call(command, "new-plugin", name, "--kind", kind, "--output", tmp_path)
    folder = tmp_path / f"unlearnkit-{name}"
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheels", folder)
    [wheel] = (tmp_path / "wheels").glob("*.whl")
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    if kind in ROLE:
        assert name in call(command, "methods")
    if kind != "objective":
        assert f"unlearnkit-{name} 0.1.0" in call(command, "plugins")
    passed = call(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert "passed" in passed
    assert "failed" not in passed
    settings = [flag for setting in USE[kind] for flag in ("--set", setting.replace("my-thing", name))]
    shown = call(command, "run", digits_toml, "-q", *settings)
    assert "changed" in shown
    if ROLE.get(kind) == "unlearner":
        assert f"{name} changed" in shown
    if kind == "metric":
        assert '"distance"' in (tmp_path / "out" / "ssd" / "report.json").read_text()
    env = {**os.environ, "MYPYPATH": str(folder)}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(folder / f"unlearnkit_my_{kind}")],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        cwd=ROOT,
    )
    assert checked.returncode == 0, checked.stdout
