"""Plugins: each fault is isolated, named and explained; other plugins keep working. Offline, with fake
distributions in tests/fixtures/."""
# ruff: noqa: ARG002 - the signatures are the framework's

import base64
import hashlib
import importlib
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

from unlearnkit import (
    BatchedDiagonalFisher,
    ConfigurationError,
    DiagonalFisher,
    DuplicateMethodError,
    Importance,
    PluginLoadError,
    PluginManager,
    PluginWarning,
    Report,
    Run,
    UnknownMethodError,
    hookimpl,
)
from unlearnkit.plugins.entry_points import DISABLE, Discovered, provider_of
from unlearnkit.plugins.manager import default_manager

FIXTURES = Path(__file__).parents[1] / "fixtures"
RUN = Run(method="m", options={}, estimator="e", model="M")
SHIPPED = {"binary-mask", "prune", "ssd"}


@pytest.fixture
def site(monkeypatch):
    """Put the fake distributions on the path; afterwards remove their modules."""
    monkeypatch.delenv(DISABLE, raising=False)
    monkeypatch.syspath_prepend(FIXTURES / "site")
    yield
    for name in [n for n in sys.modules if n.startswith("fake_")]:
        del sys.modules[name]


@pytest.fixture
def manager(site):
    """A manager that has called every fake plugin, so warnings are not repeated."""
    manager = PluginManager()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        manager.problems()
    return manager


def names(manager, kind="unlearner"):
    return {entry.name for entry in manager.provided(kind)}


def problem(manager, plugin):
    return [str(p) for p in manager.problems() if p.plugin == plugin]


def test_good_plugin_is_found_and_described(manager):
    cls = manager.unlearner("good")
    entry = next(e for e in manager.provided("unlearner") if e.name == "good")
    assert (cls.__name__, entry.cls, entry.doc, entry.options) == ("Good", cls, "A good method.", ())
    assert manager.provider_of(cls) == "fake-good 1.0"
    found = next(p for p in manager.plugins() if p.name == "good")
    assert (found.target, found.origin, found.problem) == ("fake_good", "fake-good 1.0", None)


def test_good_methods_work_beside_broken_ones(manager):
    good = {"good", "zebra", "known", "fine", "damaged"}
    assert names(manager) >= SHIPPED | good | {"twin"}
    assert not names(manager) & {"unwritten", "counts", "needless", "Shouts_Loudly"}
    for name in SHIPPED | good:
        assert manager.unlearner(name).name == name
    assert names(manager, "estimator") >= {"diagonal-fisher", "batched-diagonal-fisher"}
    assert manager.estimator("diagonal-fisher") is DiagonalFisher
    assert [e.name for e in manager.provided("unlearner")] == sorted(e.name for e in manager.provided("unlearner"))


# One fault each: isolated, named, explained


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ("broken", r"plugin 'broken' of fake-broken 2.0, import: ModuleNotFoundError: No module named 'no_such_module"),
        (
            "missing",
            r"plugin 'missing' of fake-broken 2.0, import: ModuleNotFoundError: No module named 'fake_not_there'",
        ),
        ("exits", r"plugin 'exits' of fake-broken 2.0, import: SystemExit: usage: fake_exits FILE"),
        (
            "signature",
            r"plugin 'signature' of fake-signature 3.0, hook signature: PluginValidationError: (?s:.*)registry",
        ),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_an_error_only_when_it_is_asked_for(manager, plugin, said):
    with pytest.raises(PluginLoadError, match=rf"the unlearner '{plugin}' cannot be used: {said}") as caught:
        manager.unlearner(plugin)
    found = next(p for p in manager.plugins() if p.name == plugin)
    assert found.problem is not None
    assert caught.value.__cause__ is found.problem.error


def test_a_plugin_with_a_wrong_signature_is_not_half_registered(manager):
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        manager.before_run(RUN)
    assert not any("signature" in str(w.message) for w in issued)


def test_an_unknown_hook_is_named_with_the_closest_known_one_and_the_rest_of_the_plugin_works(manager):
    said = (
        r"plugin 'unknown' of fake-unknown 4.0, unknown hook: PluginLoadError: no hook is called "
        r"'unlearnkit_register_unlearner'; did you mean 'unlearnkit_register_unlearners'\?"
    )
    with pytest.raises(PluginLoadError, match=said):
        manager.check_pending()
    assert len(problem(manager, "unknown")) == 1  # the optional hook of a newer host is none
    assert manager.unlearner("known").name == "known"


def test_nothing_is_pending_when_every_hook_is_known():
    manager = PluginManager(entry_points=False)
    module = types.ModuleType("fine")
    seen = []

    @hookimpl(specname="unlearnkit_before_run")
    def watch(run):
        seen.append(run)

    module.watch = watch
    manager.register(module)
    assert manager.check_pending() is None
    manager.before_run(RUN)
    assert seen == [RUN]


@pytest.mark.parametrize(
    "said",
    [
        r"Unwritten is abstract: write rule",
        r"expected a subclass of Unlearner, saw fake_classes.Counts: return it from unlearnkit_register_metrics",
        r"expected a class, saw <fake_classes.Fine .*>: return the class, not an object of it",
        r"expected a class, saw 'fine': return the class, not an object of it",
        r"Shouts.name: expected lower-case letters, digits and '-', as 'my-method', saw 'Shouts_Loudly'",
        r"Nameless.name: expected .* saw None",
        r"Needless.needs: expected a frozenset of Need, saw {'forget'}",
    ],
)
def test_a_class_that_cannot_be_used_is_named_with_its_plugin(manager, said):
    import re

    wanted = re.compile(rf"plugin 'classes' of fake-classes 5.0, registering its unlearners: PluginLoadError: {said}")
    assert len([text for text in problem(manager, "classes") if wanted.fullmatch(text)]) == 1
    assert len(problem(manager, "classes")) == 7
    assert manager.metric("counts").name == "counts"


def test_a_hook_that_raises_or_returns_no_list_is_named(manager):
    assert problem(manager, "raises") == [
        "plugin 'raises' of fake-raises 6.0, registering its unlearners: ZeroDivisionError: no methods today",
        (
            "plugin 'raises' of fake-raises 6.0, registering its estimators: PluginLoadError: expected a list, saw "
            "<class 'unlearnkit.importance.fisher.diagonal.DiagonalFisher'>: write `return [...]`"
        ),
    ]


def test_a_duplicate_name_names_both_distributions_and_only_when_it_is_asked_for(manager):
    with pytest.raises(
        DuplicateMethodError,
        match=r"the unlearner 'twin' is provided by fake-twin-one 7.1 \(plugin 'twin-one'\) and fake-twin-two 7.2 "
        rf"\(plugin 'twin-two'\): uninstall one, or switch it off with {DISABLE}",
    ):
        manager.unlearner("twin")


def test_unknown_method_suggests_a_name_and_lists_broken_plugins(manager):
    with pytest.raises(UnknownMethodError, match=r"no unlearner is called 'goood'; did you mean 'good'") as caught:
        manager.unlearner("goood")
    for plugin in ("broken", "signature", "raises", "classes", "unknown"):
        assert f"plugin '{plugin}'" in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"saw 'unlearners'; did you mean 'unlearner'"):
        manager.provided("unlearners")


def test_plugins_of_one_name_from_several_distributions_are_all_listed(monkeypatch):
    monkeypatch.syspath_prepend(FIXTURES / "clash")
    manager = PluginManager()
    with pytest.warns(PluginWarning) as issued:
        assert manager.unlearner("clash").name == "clash"
    found = [p for p in manager.plugins() if p.name.startswith("clash")]
    assert [(p.name, p.origin, p.problem is None) for p in found] == [
        ("clash", "fake-clash-other 1.0", True),
        ("clash@fake-clash", "fake-clash 1.0", False),
        ("clash@fake-clash:fake_zz_two", "fake-clash 1.0", False),
    ]
    assert len(issued) == 2


# Warnings: once each, and none is a stumbling block


def test_each_fault_is_warned_of_once(site):
    manager = PluginManager()
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        for _ in range(2):
            manager.problems()
            manager.unlearner("good")
            manager.register(types.ModuleType("another"), name=f"another-{_}")
    said = [str(w.message) for w in issued if issubclass(w.category, PluginWarning)]
    assert len(said) == len(issued) == len(set(said)) == len(manager.problems())
    assert all("is left out" in text for text in said)


def test_a_warning_made_an_error_does_not_lose_the_plugins_after_it(site):
    manager = PluginManager()
    raised = 0
    for _ in range(20):
        try:
            manager.problems()
        except PluginWarning:  # the suite turns warnings into errors
            raised += 1
    assert raised >= 1
    assert manager.unlearner("zebra").name == "zebra"
    assert names(manager) > SHIPPED


# The provider of a class


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Write a distribution as an installer would; returns its import name's manager entry for a class in a file."""
    from unlearnkit import ImportanceEstimator

    def install(name, module, *, recorded=None, editable=False, top_level="", site="site"):
        folder = tmp_path / site
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[unlearnkit]\n{name} = {module}\n")
        home = tmp_path / name if editable else folder
        home.mkdir(exist_ok=True)
        path = home / f"{top_level or module}.py"
        if not path.exists():
            path.write_text("class Found:\n    name = 'found'\n")
        if editable:
            (info / "direct_url.json").write_text(f'{{"url": "{home.as_uri()}", "dir_info": {{"editable": true}}}}')
            monkeypatch.syspath_prepend(home)
        elif recorded is not None:
            digest = base64.urlsafe_b64encode(hashlib.sha256(recorded.encode()).digest()).rstrip(b"=").decode()
            (info / "RECORD").write_text(f"{path.name},sha256={digest},1\n")
        monkeypatch.syspath_prepend(folder)
        return path

    def provider(module, plugin):
        found = importlib.import_module(module)
        cls = type(ImportanceEstimator)(
            "Found", (ImportanceEstimator,), {"name": "found", "__module__": found.__name__, "estimate_batch": print}
        )
        return provider_of(cls, plugin)

    yield install, provider
    for name in [n for n in sys.modules if n.startswith("probe_")]:
        del sys.modules[name]


CONTENT = "class Found:\n    name = 'found'\n"
OTHER = Discovered(name="other", target="other_module", distribution="other", version="9")


@pytest.mark.parametrize(
    ("options", "provider"),
    [
        ({"recorded": CONTENT}, "probe 1.0"),
        ({"recorded": "something else"}, "probe 1.0 (file changed since)"),
        ({"editable": True}, "probe 1.0"),
        ({}, "probe_module (registered by other 9)"),
        ({"editable": True, "top_level": "probe_elsewhere"}, "probe_elsewhere (registered by other 9)"),
    ],
)
def test_the_provider_is_the_distribution_that_owns_the_file_of_the_class(installed, options, provider):
    install, provider_by = installed
    install("probe", "probe_module", **options)
    assert provider_by(options.get("top_level", "probe_module"), OTHER) == provider


def test_without_a_record_the_entry_point_names_the_distribution_of_its_own_module_only(installed):
    install, provider = installed
    install("probe", "probe_module")
    own = Discovered(name="probe", target="probe_module", distribution="probe", version="1.0")
    assert provider("probe_module", own) == "probe 1.0"
    assert provider("probe_module", Discovered(name="m", target="mine")) == "mine"


def test_provider_of_a_file_of_two_distributions_is_the_one_with_its_content(installed):
    install, provider = installed
    install("probe", "probe_module", recorded="what was there before")
    install("probe-thief", "probe_module", recorded=CONTENT)
    assert provider("probe_module", OTHER) == "probe-thief 1.0"


def test_a_plugin_that_registers_a_shipped_class_again_is_not_its_provider():
    manager = PluginManager()
    shipped = manager.provider_of(manager.unlearner("ssd"))
    assert shipped.startswith("unlearnkit ")
    other = PluginManager(entry_points=False)
    other.register(Offers(DiagonalFisher), name="mine")
    assert other.provider_of(DiagonalFisher) == shipped
    assert other.provider_of(BatchedDiagonalFisher) == ""


# Switching off


def test_plugins_are_switched_off_by_name_and_listed_with_the_reason(site, monkeypatch):
    monkeypatch.setenv(DISABLE, "twin-two, broken,ssd ,")
    manager = PluginManager()
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        assert manager.unlearner("twin").__module__ == "fake_twin_one"
    assert not any("blocked" in str(w.message) or "no_such_module" in str(w.message) for w in issued)
    blocked = [p for p in manager.plugins() if p.problem is not None and p.problem.stage == "blocked"]
    assert [p.name for p in blocked] == ["broken", "ssd", "twin-two"]
    with pytest.raises(PluginLoadError, match=rf"'ssd' of unlearnkit .*, blocked: RuntimeError: by {DISABLE}"):
        manager.unlearner("ssd")


def test_all_plugins_are_switched_off_by_a_star(site, monkeypatch):
    monkeypatch.setenv(DISABLE, "*")
    manager = PluginManager()
    assert names(manager) == names(manager, "estimator") == names(manager, "metric") == set()
    assert {p.problem.stage for p in manager.plugins()} == {"blocked"}
    assert "fake_good" not in sys.modules


def test_without_entry_points_only_what_is_registered_is_there():
    manager = PluginManager(entry_points=False)
    assert manager.plugins() == manager.problems() == ()
    assert names(manager) == set()
    with pytest.raises(UnknownMethodError, match=r"no unlearner is called 'ssd'; there are none"):
        manager.unlearner("ssd")


# Registered plugins


class Offers:
    def __init__(self, *classes):
        self.classes = classes

    @hookimpl
    def unlearnkit_register_estimators(self):
        return list(self.classes)


def test_plugin_registered_later_is_found():
    manager = PluginManager(entry_points=False)
    assert names(manager, "estimator") == set()
    manager.register(Offers(DiagonalFisher), name="mine")
    assert manager.estimator("diagonal-fisher") is DiagonalFisher
    manager.register(Offers(BatchedDiagonalFisher, DiagonalFisher), name="yours")  # the same class twice is no conflict
    assert names(manager, "estimator") == {"diagonal-fisher", "batched-diagonal-fisher"}
    assert manager.estimator("diagonal-fisher") is DiagonalFisher


def test_faulty_registered_plugin_is_refused_and_unregistered():
    class Faulty:
        @hookimpl
        def unlearnkit_before_run(self, run):
            raise AssertionError("called")

        @hookimpl
        def unlearnkit_register_estimators(self, registry):
            raise AssertionError("called")

    manager = PluginManager(entry_points=False)
    with pytest.raises(PluginLoadError, match=r"(?s)plugin 'faulty' .*hook signature: .*registry"):
        manager.register(Faulty(), name="faulty")
    manager.before_run(RUN)
    assert names(manager, "estimator") == set()
    manager.register(Offers(DiagonalFisher), name="mine")  # already raised as an error, so no warning


def test_a_name_and_an_object_are_registered_once():
    manager, plugin = PluginManager(entry_points=False), Offers(DiagonalFisher)
    manager.register(plugin, name="mine")
    with pytest.raises(ConfigurationError, match=r"expected a new plugin name, saw 'mine' again: pass name="):
        manager.register(Offers(), name="mine")
    with pytest.raises(PluginLoadError, match=r"plugin 'again' .*registration: ValueError"):
        manager.register(plugin, name="again")
    assert manager.estimator("diagonal-fisher") is DiagonalFisher


def test_unknown_hook_of_a_registered_plugin_warns_at_once():
    class Misspelt:
        @hookimpl
        def unlearnkit_befor_run(self, run):
            """Never called."""

    manager = PluginManager(entry_points=False)
    with pytest.warns(PluginWarning, match=r"'unlearnkit_befor_run'; did you mean 'unlearnkit_before_run'"):
        manager.register(Misspelt())
    with pytest.raises(PluginLoadError, match=r"did you mean 'unlearnkit_before_run'"):
        manager.check_pending()


def test_unmarked_function_is_not_a_hook():
    from unittest.mock import MagicMock

    module = types.ModuleType("mocked")
    module.anything = MagicMock()
    manager = PluginManager(entry_points=False)
    manager.register(module)
    assert manager.problems() == ()


def test_a_plugin_whose_attributes_raise_is_isolated():
    class Hostile:
        def __dir__(self):
            raise ZeroDivisionError("trap")

    manager = PluginManager(entry_points=False)
    manager.register(Offers(DiagonalFisher), name="mine")
    with pytest.raises(PluginLoadError, match=r"plugin 'hostile' .*ZeroDivisionError: trap"):
        manager.register(Hostile(), name="hostile")
    assert manager.estimator("diagonal-fisher") is DiagonalFisher


def test_class_whose_attributes_raise_is_isolated():
    class Trap(type(DiagonalFisher)):
        @property
        def name(cls):
            raise ZeroDivisionError("trap")

    from unlearnkit import ImportanceEstimator

    trap = Trap("Trapped", (ImportanceEstimator,), {"estimate_batch": lambda *_, **__: None})
    manager = PluginManager(entry_points=False)
    manager.register(Offers(trap), name="hostile")
    manager.register(Offers(DiagonalFisher), name="mine")
    with pytest.warns(PluginWarning, match=r"plugin 'hostile' .*registering its estimators: ZeroDivisionError: trap"):
        assert manager.estimator("diagonal-fisher") is DiagonalFisher


# Observers


def test_observers_get_only_the_arguments_they_declare():
    calls = []

    class Watcher:
        @hookimpl
        def unlearnkit_after_estimate(self, importance, role):
            calls.append((importance, role))

        @hookimpl
        def unlearnkit_after_run(self, run, report):
            calls.append((run, report))

    import torch

    manager, one, report = PluginManager(entry_points=False), None, Report(method="m")
    manager.register(Watcher())
    one = Importance(totals={"w": torch.ones(1)}, count=1)
    manager.before_run(RUN)
    manager.after_estimate(RUN, "forget", one)
    manager.after_run(RUN, report)
    (copy, role), last = calls
    assert (copy.totals, role, last) == (one.totals, "forget", (RUN, report))


# A fresh process


FRESH = """
import sys, torch, unlearnkit
manager = unlearnkit.PluginManager()
print([m for m in sys.modules if m.startswith(("unlearnkit_", "fake_", "pytest", "hypothesis", "torchvision"))])
import warnings
warnings.simplefilter("ignore")
print(manager.unlearner("zebra").__name__, manager.unlearner("ssd").__name__, torch.cuda.is_initialized())
"""


def test_no_plugin_is_loaded_before_the_first_request_and_cuda_is_not_initialised():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FRESH],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(FIXTURES / "site")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "Zebra SelectiveSynapticDampening False"]


def test_the_shared_manager_is_one_per_process():
    assert default_manager() is default_manager()
