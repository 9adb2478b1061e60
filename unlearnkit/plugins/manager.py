"""The plugin manager: a typed face over pluggy that isolates, names and explains what is wrong with a plugin."""

import copy
import functools
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, final

import attrs
import pluggy

from unlearnkit.evaluation.metric import Metric
from unlearnkit.importance.estimator import ImportanceEstimator
from unlearnkit.importance.fisher import Kernel
from unlearnkit.importance.importance import Importance
from unlearnkit.plugins import hookspecs
from unlearnkit.plugins.entry_points import Discovered, Problem, entry_point_plugins, provider_of, warn_of
from unlearnkit.plugins.hookspecs import Run
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.unlearner import Unlearner, plugin_fault
from unlearnkit.utils.errors import (
    ConfigurationError,
    DuplicateMethodError,
    PluginLoadError,
    UnknownMethodError,
    nearest,
)
from unlearnkit.utils.global_state import restored_globals
from unlearnkit.utils.kernel_source import plugin_kernels
from unlearnkit.utils.options import Option, final_fault, options_of

TRACE = "UNLEARNKIT_TRACE_HOOKS"
"""Environment variable: ``1`` prints a line on the error stream for each call of a hook of a plugin."""

T = TypeVar("T")
_KINDS: Mapping[str, type] = {"unlearner": Unlearner, "estimator": ImportanceEstimator, "metric": Metric}
_OFFERS: Mapping[str, type] = {**_KINDS, "kernel": Kernel}  # the hook is unlearnkit_register_<kind>s


Watched = Callable[[str], AbstractContextManager[object]]
"""Makes a context for a call of an observer, whose name it is given."""


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
        return str(self.cls.__doc__ or "").strip().partition("\n")[0]

    def paragraph(self, label: str) -> str:
        """Return the paragraph of its docstring that begins with a label, such as ``"Source"``, or nothing."""
        parts = (" ".join(part.split()) for part in (inspect.getdoc(self.cls) or "").split("\n\n"))
        return next((part.removeprefix(f"{label}: ") for part in parts if part.startswith(f"{label}: ")), "")


def fault_of(cls: Any, base: type) -> str:
    """Say what is wrong with a class that a plugin returned."""
    if not isinstance(cls, type):
        return f"expected a class, saw {cls!r}: return the class, not an object of it"
    if not issubclass(cls, base):
        hooks = [f": return it from unlearnkit_register_{kind}s" for kind, of in _KINDS.items() if issubclass(cls, of)]
        return f"expected a subclass of {base.__name__}, saw {cls.__module__}.{cls.__qualname__}{''.join(hooks)}"
    return plugin_fault(cls) or final_fault(cls)


def kernel_fault(kernel: Any, base: type) -> str:
    return "" if isinstance(kernel, base) else f"expected objects of subclasses of {base.__name__}, saw {kernel!r}"


@final
class PluginManager:
    """Finds methods, estimators and metrics by name, wherever they were installed from.

    Plugins are imported when one is first asked for. A broken plugin is recorded and warned about once; it is an error
    only when something it should have provided is asked for. With ``entry_points=False`` it does not look for installed
    plugins, in the entry-point group ``unlearnkit``: for tests.

    Examples:
        >>> manager = PluginManager()
        >>> manager.unlearner("ssd").__name__
        'SelectiveSynapticDampening'
    """

    def __init__(self, *, entry_points: bool = True) -> None:
        self._pluggy = pluggy.PluginManager(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._discovered: dict[str, Discovered] = {}
        self._providers: dict[type, str] = {}
        self._problems: list[Problem] = []
        self._warned = 0  # how many of the problems were warned of
        self._offers: dict[str, dict[str, list[tuple[Discovered, Any]]]] = {kind: {} for kind in _OFFERS}
        self._pending = entry_points

    def register(self, plugin: object, *, name: str | None = None) -> None:
        """Register a module or an object with ``@hookimpl`` functions; ``name`` is for messages.

        A hook with another signature than its specification is a `PluginLoadError`, a name that is registered already a
        `ConfigurationError`.
        """
        self._load()
        found = Discovered.of_object(plugin, name)
        if found.name in self._discovered:
            raise ConfigurationError(f"expected a new plugin name, saw {found.name!r} again: pass name=")
        problem = self._add(found, plugin)
        if problem is not None:
            self._warned = len(self._problems)  # raised instead
            raise PluginLoadError(str(problem)) from problem.error
        plugin_kernels.cache_clear()  # it may offer some
        self._providers.clear()
        self._warn()

    def unlearner(self, name: str) -> type[Unlearner]:
        """Return the class of a method, as ``"ssd"``."""
        return self._find("unlearner", name)

    def estimator(self, name: str) -> type[ImportanceEstimator]:
        """Return the class of an estimator, as ``"diagonal-fisher"``."""
        return self._find("estimator", name)

    def metric(self, name: str) -> type[Metric]:
        """Return the class of a metric, as ``"loss-and-accuracy"``."""
        return self._find("metric", name)

    def provided(self, kind: str) -> tuple[Provided, ...]:
        """List the classes of a kind, ``"unlearner"``, ``"estimator"`` or ``"metric"``, that plugins provide.

        They are sorted by name; a duplicate name has several entries. Another kind is a `ConfigurationError`.
        """
        if kind not in _KINDS:
            raise ConfigurationError(f"expected a kind of class, saw {kind!r}{nearest(kind, _KINDS)}")
        found = [Provided(name=cls.name, cls=cls, plugin=plugin) for plugin, cls in self._offered(kind)]
        return tuple(sorted(found, key=lambda entry: entry.name))

    def kernels(self) -> tuple[tuple[Kernel, str], ...]:
        """List the kernels that plugins offer for the exact Fisher, each with the plugin and its distribution."""
        return tuple((kernel, f"plugin {found.name!r} of {found.origin}") for found, kernel in self._offered("kernel"))

    def provider_of(self, cls: type) -> str:
        """Return the distribution of a class's file, as ``"unlearnkit 0.1.0"``; "" when no plugin registered it."""
        if cls not in self._providers:  # the records of all distributions are read
            entries = [entry for kind in _KINDS for entry in self.provided(kind) if entry.cls is cls]
            self._providers[cls] = provider_of(cls, entries[0].plugin) if entries else ""
        return self._providers[cls]

    def plugins(self) -> tuple[Discovered, ...]:
        """List every plugin that was found, usable or not, sorted by name."""
        self._load()
        return tuple(sorted(self._discovered.values(), key=lambda plugin: plugin.name))

    def problems(self) -> tuple[Problem, ...]:
        """List what is wrong with any plugin, in the order of discovery."""
        for kind in _KINDS:
            self._offered(kind)
        return tuple(self._problems)

    def check_pending(self) -> None:
        """Raise PluginLoadError for hook implementations without a hook specification, which would never be called."""
        unknown = [problem for problem in self.problems() if problem.stage == "unknown hook"]
        if unknown:
            raise PluginLoadError("; ".join(map(str, unknown)))

    def before_run(self, run: Run, *, watched: Watched = nullcontext) -> None:
        """Call every observer of the start of a run.

        Each observer gets copies. ``watched``, given its name, is a context in which it is called.
        """
        self._notify("unlearnkit_before_run", watched, run=run)

    def after_estimate(self, run: Run, role: str, importance: Importance, *, watched: Watched = nullcontext) -> None:
        """Call every observer of an importance; ``role`` is the set that it was measured on."""
        self._notify("unlearnkit_after_estimate", watched, run=run, role=role, importance=importance)

    def after_run(self, run: Run, report: Report, *, watched: Watched = nullcontext) -> None:
        """Call every observer of the end of a run that succeeded."""
        self._notify("unlearnkit_after_run", watched, run=run, report=report)

    def after_write(self, folder: Path) -> None:
        """Call every observer of a folder of results that is complete."""
        self._notify("unlearnkit_after_write", nullcontext, folder=folder)

    def offers(self, plugin: str) -> tuple[str, ...]:
        """List what a plugin offers, as ``"unlearner 'ssd'"`` or ``"unlearnkit_before_run"``, and names that clash."""
        found = []
        for kind in _OFFERS:
            everything = self._offered(kind)
            for _, thing in self._offers[kind].get(plugin, ()):
                others = {of.origin for of, other in everything if other.name == thing.name and other is not thing}
                clash = f" (also of {', '.join(sorted(others))}: asking for it is an error)" if others else ""
                found.append(f"{kind} {thing.name!r}{clash if kind in _KINDS else ''}")
        hooks = [f"unlearnkit_{moment}" for moment in ("before_run", "after_estimate", "after_run", "after_write")]
        return (
            *dict.fromkeys(found),
            *(hook for hook in hooks if plugin in {of.name for of, _ in self._call_each(hook)}),
        )

    def _load(self) -> None:
        if not self._pending:
            return
        self._pending = False  # a plugin may ask this manager while it is imported
        try:
            for found, load in entry_point_plugins():
                if found.name not in self._discovered:  # before Ctrl-C ended an earlier call
                    self._load_one(found, load)
        except BaseException:
            self._pending = True
            raise
        self._warn()

    def _load_one(self, found: Discovered, load: Callable[[], object]) -> None:
        if found.problem is not None:
            self._remember(found, found.problem)
            return
        plugin, error, changed = _attempt(load)
        self._problems += _put_back(found, "import", changed)
        if error is None:
            self._add(found, plugin)
        else:
            self._remember(found, found.problem_at("import", error))

    def _remember(self, found: Discovered, problem: Problem | None) -> None:
        self._discovered[found.name] = attrs.evolve(found, problem=problem)
        if problem is not None:
            self._problems.append(problem)

    def _warn(self) -> None:
        new = self._problems[self._warned :]
        self._warned = len(self._problems)  # first: a warning may have been made an error
        for problem in new:
            if problem.stage != "blocked":
                warn_of(problem)

    def _add(self, found: Discovered, plugin: object) -> Problem | None:
        def register() -> list[Problem]:
            if isinstance(plugin, type):
                raise PluginLoadError(
                    f"expected a module or an object with hooks, saw the class {plugin.__qualname__}: name its module"
                )
            if self._pluggy.has_plugin(found.name):  # Ctrl-C ended an earlier call
                self._pluggy.unregister(name=found.name)
            self._pluggy.register(plugin, name=found.name)
            return self._unknown_hooks(found, plugin)

        unknown, error, _ = _attempt(register)
        if error is not None:  # pluggy's own errors and whatever attribute access on a plugin raises
            # pluggy before 1.7 leaves a plugin half registered after a validation error.
            if self._pluggy.get_plugin(found.name) is plugin:
                self._pluggy.unregister(name=found.name)
            stage = "hook signature" if isinstance(error, pluggy.PluginValidationError) else "registration"
            problem = found.problem_at(stage, error)
            self._remember(found, problem)
            return problem
        self._remember(found, None)
        self._problems += unknown or []
        return None

    def _unknown_hooks(self, found: Discovered, plugin: object) -> list[Problem]:
        marks = [(name, self._pluggy.parse_hookimpl_opts(plugin, name)) for name in dir(plugin)]
        # An optional hook is one that a newer host may have.
        marked = [mark.get("specname") or name for name, mark in marks if mark and not mark.get("optionalhook")]
        known = {name for name in dir(hookspecs) if hasattr(getattr(hookspecs, name), f"{hookspecs.PROJECT}_spec")}
        unmarked = [name for name, mark in marks if not mark and name.startswith(f"{hookspecs.PROJECT}_")]
        functions = [name for name in unmarked if inspect.isroutine(inspect.getattr_static(plugin, name, None))]
        return [
            found.problem_at("unknown hook", PluginLoadError(f"no hook is called {name!r}{nearest(name, known)}"))
            for name in marked
            if name not in known
        ] + [
            found.problem_at("unmarked hook", PluginLoadError(f"{name} is not called: {advice}"))
            for name in functions
            for advice in [
                "write @hookimpl above it" if name in known else f"no hook has this name{nearest(name, known)}"
            ]
        ]

    def _find(self, kind: str, name: str) -> type[Any]:
        entries, problems = self.provided(kind), self.problems()
        found = [entry for entry in entries if entry.name == name]
        if len({entry.cls for entry in found}) > 1:
            providers = " and ".join(f"{entry.plugin.origin} (plugin {entry.plugin.name!r})" for entry in found)
            if len({entry.plugin.name for entry in found}) == 1:
                classes = " and ".join(entry.cls.__qualname__ for entry in found)
                raise DuplicateMethodError(
                    f"the {kind} {name!r} is both {classes} of {found[0].plugin.origin}: rename one"
                )
            raise DuplicateMethodError(
                f"the {kind} {name!r} is provided by {providers}: uninstall one, or switch it off with "
                "UNLEARNKIT_DISABLE_PLUGINS"
            )
        if found:
            return found[0].cls
        for problem in problems:
            if problem.plugin == name or problem.plugin.startswith(f"{name}@"):
                raise PluginLoadError(f"the {kind} {name!r} cannot be used: {problem}") from problem.error
        broken = ", ".join(dict.fromkeys(f"plugin {problem.plugin!r}" for problem in problems))
        hint = f". Not or partly usable: {broken}; `unlearnkit plugins` says why" if broken else ""
        raise UnknownMethodError(
            f"no {kind} is called {name!r}{nearest(name, {entry.name for entry in entries})}{hint}"
        )

    def _offered(self, kind: str) -> list[tuple[Discovered, Any]]:
        """Ask plugins that were not asked before, and check everything that they give."""
        self._load()
        offers, check = self._offers[kind], kernel_fault if kind == "kernel" else fault_of
        calls = self._call_each(f"unlearnkit_register_{kind}s")
        for found, call in [pair for pair in calls if pair[0].name not in offers]:
            judged, error, changed = _attempt(functools.partial(_judged, call, check, _OFFERS[kind]))
            offers[found.name] = [(found, thing) for thing, fault in judged or () if not fault]
            errors = [PluginLoadError(fault) for _, fault in judged or () if fault] if error is None else [error]
            stage = f"registering its {kind}s"
            self._problems += [found.problem_at(stage, error) for error in errors]
            self._problems += _put_back(found, stage, changed)
        self._warn()
        return [pair for given in offers.values() for pair in given]

    def _call_each(self, hook: str, **arguments: Any) -> Iterable[tuple[Discovered, Callable[[], Any]]]:
        for name, plugin in self._pluggy.list_name_plugin():
            others = [p for _, p in self._pluggy.list_name_plugin() if p is not plugin]
            caller = self._pluggy.subset_hook_caller(hook, others)
            if plugin is not None and caller.get_hookimpls():
                copies = copy.deepcopy(arguments)
                found, call = self._discovered[name], functools.partial(caller, **copies)
                yield found, traced(call, f"{hook} of plugin {found.name!r} ({found.origin})")

    def _notify(self, hook: str, watched: "Watched", **arguments: Any) -> None:
        self._load()
        for found, call in self._call_each(hook, **arguments):
            with watched(f"plugin {found.name!r} of {found.origin}, {hook}"):
                _, error, changed = _attempt(call)
            # An observer must not be able to stop the run it observes.
            for problem in [found.problem_at(hook, error)] if error is not None else []:
                warn_of(problem)
            for problem in _put_back(found, hook, changed):
                warn_of(problem)


def _attempt(call: Callable[[], T]) -> tuple[T | None, BaseException | None, dict[str, bool]]:
    """Call foreign code: return what it returns or raises, Ctrl-C excepted, and what it set for everybody."""
    with restored_globals() as changed:
        try:
            return call(), None, changed
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a script may call sys.exit, a test module may skip itself
            return None, error, changed


def _put_back(found: Discovered, stage: str, changed: Mapping[str, bool]) -> list[Problem]:
    outcomes = {True: "which was put back", False: "which torch cannot put back: start Python again without the plugin"}
    return [
        found.problem_at("global state", PluginLoadError(f"it set {', '.join(names)} in {stage}, {outcome}"))
        for back, outcome in outcomes.items()
        if (names := [name for name, was in changed.items() if was is back])
    ]


def _judged(call: Callable[[], list[Any]], check: Callable[[Any, type], str], base: type) -> list[tuple[Any, str]]:
    results = call()
    if not results:  # pluggy leaves out None
        raise PluginLoadError("it returned nothing: write `return [...]`")
    for result in results:
        if isinstance(result, str | Mapping | type) or not isinstance(result, Iterable):
            raise PluginLoadError(f"expected a list, saw {result!r}: write `return [...]`")
    return [(thing, check(thing, base)) for result in results for thing in result]


def traced(call: Callable[[], Any], what: str) -> Callable[[], Any]:
    """Make a hook call write a line to the error stream, when ``UNLEARNKIT_TRACE_HOOKS`` asks for it."""
    if os.environ.get(TRACE, "") in {"", "0"}:
        return call

    def shown() -> Any:
        start, outcome = time.perf_counter(), ""
        try:
            return call()
        except BaseException as error:
            outcome = f", raised {type(error).__name__}"
            raise
        finally:
            seconds = time.perf_counter() - start
            sys.stderr.write(f"[trace] {what}: {seconds:.4f} s{outcome}\n")

    return shown


@functools.cache
def default_manager() -> PluginManager:
    """Return the manager that is shared by everything that is not handed another."""
    return PluginManager()
