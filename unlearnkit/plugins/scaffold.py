"""Write a new plugin: a complete distribution that installs, lists, runs and passes its tests as it is."""

import importlib.util
import keyword
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions, entry_points
from importlib.resources import files
from pathlib import Path
from string import Template

from unlearnkit.plugins.entry_points import GROUP, name_and_version
from unlearnkit.utils.errors import ConfigurationError, StoreError, nearest
from unlearnkit.utils.options import NAME

KINDS: Mapping[str, str] = {
    "elementwise": "an unlearning method",
    "training": "an unlearning method that trains",
    "estimator": "an importance estimator",
    "metric": "a metric",
    "kernel": "a kernel of the exact Fisher",
    "objective": "an objective",
}
"""What a plugin can offer, and what that is called in its README."""

_USAGE: Mapping[str, str] = {
    "elementwise": '[[method]]\nname = "$name"\noptions = { alpha = 2.0 }',
    "training": '[[method]]\nname = "$name"\noptions = { epochs = 1, learning_rate = 1e-3 }',
    "estimator": '[importance]\nestimator = "$name"',
    "metric": '[evaluation]\nmetrics = ["$name"]',
    "kernel": '[importance]\noptions = { kernels = "auto" }  # the default: kernels that fit are used',
    "objective": '[objective]\nfactory = "$package:$cls"\noptions = { sigma = 1.0 }',
}
_LISTED = (
    "unlearnkit plugins          # lists $name, or says what is wrong with it\n"
    "unlearnkit methods $name    # shows its options\n"
)
_ENTRY_POINT = """
# What makes unlearnkit find the plugin: it is imported when it is needed.
[project.entry-points.unlearnkit]
$name = "$package"
"""


def new_plugin(name: str, *, kind: str = "elementwise", output: str | Path = ".") -> Path:
    if not NAME.fullmatch(name) or name.endswith("-") or "--" in name:
        raise ConfigurationError(
            f"expected a name of lower-case letters, digits and single hyphens, as 'my-method', saw {name!r}"
        )
    if kind not in KINDS:
        kinds = ", ".join(KINDS)
        raise ConfigurationError(f"expected a kind of plugin, one of {kinds}, saw {kind!r}{nearest(kind, KINDS)}")
    words = {"name": name, "what": KINDS[kind], **_names(name, used_in=_template(f"{kind}.py"))}
    words["usage"] = Template(_USAGE[kind]).substitute(words)
    listed = {"objective": "", "kernel": _LISTED.partition("\n")[0] + "\n"}.get(kind, _LISTED)
    words["listed"] = Template(listed).substitute(words)
    words["entry_point"] = "" if kind == "objective" else Template(_ENTRY_POINT).substitute(words)
    package = words["package"]
    taken = list(_installed(name, distribution=words["distribution"], package=package))
    if taken:
        raise ConfigurationError(f"expected a new name, saw {name!r}: {', '.join(taken)}; choose another name")
    folder = Path(output) / words["distribution"]
    if folder.exists():
        raise StoreError(f"{folder} already exists: choose another name or another folder")
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
    return {"distribution": f"unlearnkit-{short}", "package": f"unlearnkit_{short.replace('-', '_')}", "cls": cls}


def _installed(name: str, *, distribution: str, package: str) -> Iterator[str]:
    """Name everything installed that a new plugin would clash with; nothing is imported."""
    origins: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        origin = " ".join(name_and_version(point.dist)).strip() or point.value
        origins[point.module.partition(".")[0]] = origin
        if point.name == name:
            yield f"the plugin {name!r} of {origin} is installed"
    for other, origin in origins.items():
        yield from (f"{origin} provides it in {path.name}" for path in _sources_with_name(other, name))
    names = (name_and_version(found)[0] for found in distributions())
    if distribution in {re.sub(r"[-_.]+", "-", one).lower() for one in names}:
        yield f"the distribution {distribution} is installed"
    if importlib.util.find_spec(package) is not None:
        yield f"the module {package} is installed"


def _sources_with_name(package: str, name: str) -> Iterator[Path]:
    """Yield the source files of an installed package with a class of this name, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return
    paths = [path for folder in spec.submodule_search_locations or () for path in Path(folder).rglob("*.py")]
    if not paths and spec.origin and spec.origin.endswith(".py"):
        paths = [Path(spec.origin)]
    line = re.compile(rf"^    name(: ClassVar\[str\])? = ['\"]{name}['\"]", re.MULTILINE)
    yield from (path for path in paths if line.search(path.read_text(encoding="utf-8", errors="ignore")))


def _fill(name: str, words: Mapping[str, str]) -> str:
    return Template(_template(name)).substitute(words)


def _template(name: str) -> str:
    return files("unlearnkit.plugins").joinpath("templates", f"{name}.txt").read_text(encoding="utf-8")
