"""Which plugins are installed: the entry points of the group ``unlearnkit``, and what is wrong with each."""

import os
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, final

import attrs

from unlearnkit.utils.errors import PluginWarning

GROUP = "unlearnkit"
DISABLE = "UNLEARNKIT_DISABLE_PLUGINS"
"""Environment variable: names of plugins not to load, separated by commas, or ``*`` for none at all."""


@final
@attrs.frozen(kw_only=True)
class Problem:
    """What is wrong with a plugin, who is to blame, and the cause."""

    plugin: str
    origin: str
    stage: str
    error: BaseException | None = attrs.field(default=None, eq=False)

    def __str__(self) -> str:
        cause = f": {type(self.error).__name__}: {self.error}" if self.error is not None else ""
        return f"plugin {self.plugin!r} of {self.origin or 'an unknown distribution'}, {self.stage}{cause}"


@final
@attrs.frozen(kw_only=True)
class Discovered:
    """A plugin that was found."""

    name: str
    target: str = ""
    distribution: str = ""
    version: str = ""
    problem: Problem | None = None

    @property
    def origin(self) -> str:
        """Distribution and version, or the module for a plugin registered by hand."""
        return f"{self.distribution} {self.version}".strip() or self.target

    def with_problem(self, problem: Problem | None) -> "Discovered":
        """Return a copy that carries a problem."""
        return attrs.evolve(self, problem=problem)


def entry_point_plugins() -> Iterator[tuple[Discovered, Callable[[], object]]]:
    """Yield every installed plugin and how to load it, in the order of their names."""
    switched_off = {name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()}
    taken: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        distribution, version = _distribution_of(point)
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
        if "*" in switched_off or point.name in switched_off:
            blocked = Problem(
                plugin=found.name, origin=found.origin, stage="blocked", error=RuntimeError(f"by {DISABLE}")
            )
            found = found.with_problem(blocked)
        yield found, point.load


def _distribution_of(point: EntryPoint) -> tuple[str, str]:
    # A damaged installation may have lost its METADATA: the plugin may still load.
    metadata: Any = (point.dist.metadata if point.dist else None) or {}
    return (
        str(metadata["Name"]) if "Name" in metadata else "",
        str(metadata["Version"]) if "Version" in metadata else "",
    )


def of_object(plugin: object, name: str | None) -> Discovered:
    """Describe a plugin that was registered by hand."""
    own = getattr(plugin, "__name__", None) or type(plugin).__qualname__
    return Discovered(name=name or str(own), target=str(getattr(plugin, "__module__", None) or own))


def warn_of(problem: Problem) -> None:
    """Issue the one warning about a problem."""
    warnings.warn(f"{problem} (the plugin or this part of it is left out)", PluginWarning, stacklevel=2)
