"""What must not import torch: the version, help, completion, `new-plugin` and `import unlearnkit`."""

import os
import pickle
import pydoc
import subprocess
import sys

import pytest
import typer.main

import unlearnkit
from unlearnkit.cli.app import app

HEAVY = ("torch", "numpy", "sklearn", "scipy", "matplotlib", "torchvision", "safetensors")
LIGHT = f"""
import contextlib, io, sys
from unlearnkit.cli.app import app
for arguments in {{calls!r}}:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = app(list(arguments), standalone_mode=False)
    assert not code, (arguments, code)
    print(len(said.getvalue()), [name for name in {HEAVY!r} if name in sys.modules])
"""


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def commands(command, path=()):
    """The arguments that lead to a command and to everything below it."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


def test_help_version_and_new_plugin_do_not_import_torch(tmp_path):
    paths = list(commands(typer.main.get_command(app)))
    assert {("run",), ("new-plugin",), ("patch", "apply"), ("verify-receipts",)} <= set(paths)
    calls = [("--version",), *((*path, "--help") for path in paths), ("new-plugin", "thing", "-o", str(tmp_path))]
    done = python(LIGHT.format(calls=calls))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(calls)
    assert [line for line in lines if not line.endswith(" []")] == []
    assert (tmp_path / "unlearnkit-thing" / "pyproject.toml").exists()


def test_completion_does_not_import_torch():
    code = (
        "import sys; sys.argv, sys.modules['torch'] = ['unlearnkit'], None; import unlearnkit.__main__ as m; m.main()"
    )
    asked = {"_UNLEARNKIT_COMPLETE": "complete_bash", "COMP_WORDS": "unlearnkit ver", "COMP_CWORD": "1"}
    done = python(code, **asked)
    assert done.stdout.split() == ["verify-receipts"], done.stderr


def test_importing_the_package_and_its_errors_does_not_import_torch():
    code = (
        "import sys, unlearnkit; from unlearnkit import ConfigurationError, option; unlearnkit.plugins.__path__; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = python(code)
    assert done.stdout == "[]\n", done.stderr


def test_without_torch_the_error_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; "
    done = python(code + "from unlearnkit import Pipeline")
    assert "ImportError: unlearnkit.Pipeline needs PyTorch, which is not installed: pip install torch" in done.stderr
    done = python(code + "from unlearnkit.cli.app import app; app(['methods'])")
    assert (done.returncode, done.stderr) == (2, "error: this command needs PyTorch: pip install torch\n")


def test_a_star_import_gives_every_public_name():
    names = {}
    exec("from unlearnkit import *", names)
    assert set(unlearnkit.__all__) <= set(names)
    assert set(unlearnkit.__all__) <= set(dir(unlearnkit))


def test_pickle_and_help_find_the_names():
    for name in unlearnkit.__all__:
        thing = getattr(unlearnkit, name)
        if isinstance(thing, type):
            assert pickle.loads(pickle.dumps(thing)) is thing
    text = pydoc.render_doc(unlearnkit, renderer=pydoc.plaintext)
    assert all(name in text for name in unlearnkit.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'unlearnkit' has no attribute 'Pipelin'"):
        unlearnkit.Pipelin  # noqa: B018
    assert not hasattr(unlearnkit, "__wrapped__")
    with pytest.raises(ImportError):
        exec("from unlearnkit import Pipelin")
