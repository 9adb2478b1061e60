"""Installed plugins: the entry points of the group ``unlearnkit``, and which distribution a module comes from."""

import base64
import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distributions, entry_points
from pathlib import Path
from typing import Any, final
from urllib.parse import unquote, urlparse

import attrs

from unlearnkit.utils.errors import PluginWarning, visible

GROUP = "unlearnkit"
DISABLE = "UNLEARNKIT_DISABLE_PLUGINS"
"""Environment variable: names of plugins not to load, separated by commas, or ``*`` for none at all."""


@final
@attrs.frozen(kw_only=True)
class Problem:
    """What is wrong with a plugin, where the plugin comes from, and the cause."""

    plugin: str
    origin: str
    stage: str
    error: BaseException | None = attrs.field(default=None, eq=False)

    @property
    def cause(self) -> str:
        """The text of the error, in one line."""
        try:
            text = str(self.error)
        except Exception as error:  # noqa: BLE001 - the plugin may have written __str__
            text = f"its text raises {type(error).__name__}"
        return visible(" ".join(text.split()))

    def __str__(self) -> str:
        cause = f": {type(self.error).__name__}: {self.cause}" if self.error is not None else ""
        return f"plugin {self.plugin!r} of {self.origin or 'an unknown distribution'}, {self.stage}{cause}"


@final
@attrs.frozen(kw_only=True)
class Discovered:
    name: str
    target: str = ""
    distribution: str = ""
    version: str = ""
    problem: Problem | None = None

    @classmethod
    def of_object(cls, plugin: object, name: str | None) -> "Discovered":
        own = getattr(plugin, "__name__", None) or type(plugin).__qualname__
        return cls(name=name or str(own), target=str(getattr(plugin, "__module__", None) or own))

    @property
    def origin(self) -> str:
        """Distribution and version, or the module of a plugin passed to ``register``."""
        return f"{self.distribution} {self.version}".strip() or self.target

    def problem_at(self, stage: str, error: BaseException) -> Problem:
        return Problem(plugin=self.name, origin=self.origin, stage=stage, error=error)


def entry_point_plugins() -> Iterator[tuple[Discovered, Callable[[], object]]]:
    """Yield every installed plugin and how to load it, sorted by name."""
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()}
    taken: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        distribution, version = name_and_version(point.dist)
        found = Discovered(name=point.name, target=point.value, distribution=distribution, version=version)
        identity = f"{found.origin} ({point.value})"
        if taken.get(point.name) == identity:
            continue  # the same distribution seen twice on the path
        if point.name in taken:
            found = attrs.evolve(found, name=f"{point.name}@{found.distribution}")
            if found.name in taken:
                found = attrs.evolve(found, name=f"{found.name}:{point.value}")
        taken.setdefault(point.name, identity)
        taken.setdefault(found.name, identity)
        if "*" in disabled or point.name in disabled:
            found = attrs.evolve(found, problem=found.problem_at("blocked", RuntimeError(f"by {DISABLE}")))
        yield found, point.load


def name_and_version(distribution: Distribution | None) -> tuple[str, str]:
    """Return name and version of a distribution, "" for what is not known."""
    # A damaged installation may have lost its METADATA: the plugin may still load.
    metadata: Any = (distribution.metadata if distribution else None) or {}
    name, version = (str(metadata[key]) if key in metadata else "" for key in ("Name", "Version"))
    return name, version


def warn_of(problem: Problem) -> None:
    """Issue the one warning about a problem."""
    outcome = "" if problem.stage == "global state" else " (the plugin or this part of it is left out)"
    warnings.warn(f"{problem}{outcome}", PluginWarning, stacklevel=2)


# Where a class comes from


def provider_of(cls: type, plugin: Discovered) -> str:
    """Return name and version of the distribution whose file holds a class that a plugin registered.

    Where no distribution owns the file, the plugin's own distribution is named if its entry point is in the package of
    the class; otherwise the module, and who registered it.
    """
    owner = owner_of(cls.__module__)
    if owner or not plugin.distribution or _top(cls.__module__) == _top(plugin.target):
        return owner or plugin.origin
    return f"{cls.__module__} (registered by {plugin.origin})"


def owner_of(module: str) -> str:
    """Return name and version of the distribution that installed a loaded module, or "" where none is known to."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file:
        return ""
    path, recorded, editable = Path(file).resolve(), dict[str, bool](), dict[str, int]()
    for distribution in distributions():
        unchanged = _recorded(distribution, path)
        depth = _editable_depth(distribution, path, _top(module))
        if unchanged is None and not depth:
            continue  # before its metadata are parsed, which takes long
        label = " ".join(name_and_version(distribution)).strip()
        if unchanged is not None:
            recorded[label] = recorded.get(label, False) or unchanged
        if depth:
            editable[label] = depth
    intact = [label for label, unchanged in recorded.items() if unchanged]
    if recorded:  # several, where one distribution wrote the same file as another
        return " and ".join(sorted(intact or (f"{label} (file changed since)" for label in recorded)))
    return max(editable, key=lambda label: editable[label], default="")


def _recorded(distribution: Distribution, path: Path) -> bool | None:
    """Say whether the RECORD's hash of a file is that of its content; None where the RECORD does not list it."""
    root = Path(str(distribution.locate_file(""))).resolve()
    if not path.is_relative_to(root):
        return None
    start = f"{path.relative_to(root).as_posix()},"
    for line in (distribution.read_text("RECORD") or "").splitlines():
        if line.startswith(start):
            digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
            return line.split(",")[1] in {"", f"sha256={digest}"}
    return None


def _editable_depth(distribution: Distribution, path: Path, package: str) -> int:
    """Return how deep the folder of an editable installation lies that a file of one of its packages is in, else 0."""
    about = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not about.get("dir_info", {}).get("editable"):
        return 0
    root = Path(unquote(urlparse(about["url"]).path)).resolve()
    packages = {_top(point.value) for point in distribution.entry_points}
    packages |= set((distribution.read_text("top_level.txt") or "").split())
    return len(root.parts) if path.is_relative_to(root) and package in packages else 0


def _top(module: str) -> str:
    return re.split(r"[.:]", module, maxsplit=1)[0]
