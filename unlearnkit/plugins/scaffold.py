"""Write a new plugin: a complete distribution that installs, lists, runs and passes its tests as it is."""

import keyword
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from unlearnkit.utils.errors import ConfigurationError, StoreError
from unlearnkit.utils.suggest import NAME, nearest

KINDS: Mapping[str, str] = {
    "elementwise": "an unlearning method",
    "gradient": "an unlearning method that trains",
    "estimator": "an importance estimator",
    "metric": "a metric",
}
"""What a plugin can offer, and what that is called in its README."""

_USAGE: Mapping[str, str] = {
    "elementwise": '[[method]]\nname = "$name"\noptions = { alpha = 10.0 }',
    "gradient": '[[method]]\nname = "$name"\noptions = { epochs = 1, learning_rate = 1e-3 }',
    "estimator": '[importance]\nestimator = "$name"',
    "metric": '[evaluation]\nmetrics = ["$name"]',
}


def new_plugin(name: str, *, kind: str = "elementwise", output: str | Path = ".") -> Path:
    """Write the files of a new plugin."""
    if not NAME.fullmatch(name) or name.endswith("-") or "--" in name:
        raise ConfigurationError(
            f"expected a name of lower-case letters, digits and single hyphens, as 'my-method', saw {name!r}"
        )
    if kind not in KINDS:
        kinds = ", ".join(KINDS)
        raise ConfigurationError(f"expected a kind of plugin, one of {kinds}, saw {kind!r}{nearest(kind, KINDS)}")
    words = {"name": name, "what": KINDS[kind], **_names(name, used_in=_template(f"{kind}.py"))}
    words["usage"] = Template(_USAGE[kind]).substitute(words)
    folder = Path(output) / words["distribution"]
    if folder.exists():
        raise StoreError(f"{folder} is there already: choose another name or another folder")
    package = words["package"]
    written = {
        "pyproject.toml": _fill("pyproject.toml", words),
        "README.md": _fill("README.md", words),
        ".gitignore": _fill("gitignore", words),
        f"{package}/__init__.py": _fill(f"{kind}.py", words),
        f"{package}/py.typed": "",
        f"tests/test_{package}.py": _fill(f"{kind}_test.py", words),
    }
    for path, text in written.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def _names(name: str, *, used_in: str) -> dict[str, str]:
    short = name.removeprefix("unlearnkit-") or name
    cls = "".join(word.capitalize() for word in short.split("-"))
    if keyword.iskeyword(cls) or re.search(rf"\b{cls}\b", used_in):
        cls += "Plugin"
    return {
        "distribution": f"unlearnkit-{short}",
        "package": f"unlearnkit_{short.replace('-', '_')}",
        "cls": cls,
    }


def _fill(name: str, words: Mapping[str, str]) -> str:
    return Template(_template(name)).substitute(words)


def _template(name: str) -> str:
    return files("unlearnkit.plugins").joinpath("templates", f"{name}.txt").read_text(encoding="utf-8")
