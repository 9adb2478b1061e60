"""The classes that plugins provide, checked one by one, by name."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, final

import attrs

from unlearnkit.plugins.entry_points import NAME, Discovered, Problem
from unlearnkit.unlearning.unlearner import Need, Unlearner, describe
from unlearnkit.utils.errors import DuplicateMethodError, PluginLoadError, UnknownMethodError, nearest
from unlearnkit.utils.options import Option, options_of

T = TypeVar("T")
FOREIGN_FAULTS = (Exception, SystemExit)
"""What foreign code may raise without stopping the host: a script that is imported may call ``sys.exit``."""


@final
@attrs.frozen(kw_only=True)
class Provided:
    name: str
    cls: type[Any]
    plugin: Discovered

    @property
    def options(self) -> tuple[Option, ...]:
        return options_of(self.cls)

    @property
    def doc(self) -> str:
        """The first line of its docstring."""
        return describe(self.cls)


@final
@attrs.frozen(kw_only=True)
class Registry(Generic[T]):
    """All provided classes of one kind."""

    kind: str
    entries: tuple[Provided, ...] = ()
    problems: tuple[Problem, ...] = ()

    def extend(self, base: type, calls: Iterable[tuple[Discovered, Callable[[], Any]]]) -> "Registry[T]":
        """Ask further plugins, and check every class that they give."""
        entries, problems = [*self.entries], [*self.problems]
        for plugin, call in calls:
            try:
                judged = [(c, fault_of(c, base)) for result in call() for c in result]
            except FOREIGN_FAULTS as error:  # recorded with its cause, raised when asked for
                problems.append(problem_of(plugin, f"registering its {self.kind}s", error))
                continue
            for c, fault in judged:
                if fault:
                    problems.append(problem_of(plugin, f"registering its {self.kind}s", PluginLoadError(fault)))
                else:
                    entries.append(Provided(name=c.name, cls=c, plugin=plugin))
        return attrs.evolve(
            self, entries=tuple(sorted(entries, key=lambda entry: entry.name)), problems=tuple(problems)
        )

    def get(self, name: str, problems: Iterable[Problem] = ()) -> type[T]:
        found = [entry for entry in self.entries if entry.name == name]
        if len({entry.cls for entry in found}) > 1:
            providers = " and ".join(f"{entry.plugin.origin} (plugin {entry.plugin.name!r})" for entry in found)
            raise DuplicateMethodError(
                f"the {self.kind} {name!r} is provided by {providers}: uninstall one, or switch it off with "
                "UNLEARNKIT_DISABLE_PLUGINS"
            )
        if found:
            return found[0].cls
        broken = list(problems)
        for problem in broken:
            if problem.plugin == name or problem.plugin.startswith(f"{name}@"):
                raise PluginLoadError(f"the {self.kind} {name!r} cannot be used: {problem}") from problem.error
        hint = f". Not usable: {'; '.join(map(str, broken))}" if broken else ""
        raise UnknownMethodError(
            f"no {self.kind} is called {name!r}{nearest(name, {entry.name for entry in self.entries})}{hint}"
        )


def fault_of(cls: Any, base: type) -> str:
    """Say what is wrong with a class that a plugin returned."""
    if not isinstance(cls, type):
        return f"expected a class, saw {cls!r}: return the class, not an object of it"
    if not issubclass(cls, base):
        return f"expected a subclass of {base.__name__}, saw {cls.__module__}.{cls.__qualname__}"
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        return f"{cls.__qualname__} is abstract: write {missing}"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"{cls.__qualname__}.name: expected lower-case letters, digits and '-', as 'my-method', saw {name!r}"
    needs: Any = getattr(cls, "needs", None) if issubclass(cls, Unlearner) else frozenset()
    if not (isinstance(needs, frozenset) and all(isinstance(need, Need) for need in needs)):
        return f"{cls.__qualname__}.needs: expected a frozenset of Need, saw {needs!r}"
    return ""


def problem_of(plugin: Discovered, stage: str, error: BaseException) -> Problem:
    return Problem(plugin=plugin.name, origin=plugin.origin, stage=stage, error=error)
