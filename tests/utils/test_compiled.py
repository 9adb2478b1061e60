"""Compiling on demand: once, whole or not at all, and with an error that says what to do."""

import stat

import pytest
from compiler import HAS_COMPILER

from unlearnkit import ConfigurationError, UnlearnKitWarning
from unlearnkit.utils import compiled
from unlearnkit.utils.compiled import cache_folder, load

SOURCE = '#include <cstdint>\nextern "C" int64_t twice(int64_t n) { return 2 * n; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source of its own, an empty cache, and a process that has loaded nothing."""
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path / "cache"))
    load.cache_clear()
    yield tmp_path / "twice.cpp"
    load.cache_clear()


def test_what_goes_on_without_says_so_once_and_only_in_the_log_where_there_is_no_compiler(caplog, monkeypatch):
    caplog.set_level("INFO", logger="unlearnkit")
    monkeypatch.setattr("unlearnkit.utils.compiled.find_compiler", lambda: None)
    compiled.go_on_without("a walk", ConfigurationError("no wheels"))
    assert caplog.messages == ["a walk: no wheels"]
    monkeypatch.setattr("unlearnkit.utils.compiled.find_compiler", lambda: "c++")
    with pytest.warns(UnlearnKitWarning, match="a walk: a flat tyre"):
        compiled.go_on_without("a walk", ConfigurationError("a flat tyre"))
    compiled.go_on_without("a walk", ConfigurationError("a flat tyre"))  # an error in these tests, were it a warning
    assert len(caplog.messages) == 1


def kept(source):
    return sorted(path.name for path in (source.parent / "cache").iterdir())


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
def test_compiles_and_needs_no_compiler_the_second_time(source, monkeypatch):
    source.write_text(SOURCE)
    assert load(source).twice(21) == 42
    (built,) = kept(source)
    assert built.startswith("twice-")
    assert built.endswith(".so")
    load.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load(source).twice(4) == 8


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
def test_other_source_or_instructions_are_another_library(source, monkeypatch):
    source.write_text(SOURCE)
    load(source)
    load.cache_clear()
    source.write_text(SOURCE.replace("2 * n", "3 * n"))
    assert load(source).twice(2) == 6
    load.cache_clear()
    monkeypatch.setattr(compiled, "_INSTRUCTIONS", {})
    monkeypatch.setattr(compiled, "_FLAGS", ("-O1", "-shared", "-fPIC"))
    assert load(source).twice(2) == 6
    assert len(kept(source)) == 3


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
def test_source_that_does_not_compile_leaves_nothing(source):
    source.write_text("extern int wrong(")
    with pytest.raises(ConfigurationError, match=r"failed:\n.*twice\.cpp"):
        load(source)
    assert kept(source) == []


def test_a_library_that_cannot_be_loaded_is_said(source):
    source.write_text(SOURCE)
    built = cache_folder() / f"twice-{compiled._digest(SOURCE, compiled._flags())}.so"
    built.parent.mkdir()
    built.write_bytes(b"not a library")
    with pytest.raises(ConfigurationError, match=r"cannot load a compiled kernel .*: delete .*twice-"):
        load(source)


def test_no_compiler_is_said(source, monkeypatch):
    source.write_text(SOURCE)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigurationError, match=r"need a C\+\+ compiler .* saw CXX=no-such-compiler"):
        load(source)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(source.parent))
    with pytest.raises(ConfigurationError, match="saw none on the path"):
        load(source)


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
def test_folder_that_cannot_be_made_is_said(source):
    source.write_text(SOURCE)
    (source.parent / "cache").write_text("a file")
    with pytest.raises(ConfigurationError, match="set UNLEARNKIT_CACHE to a folder"):
        load(source)


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
def test_nobody_else_may_write_there(source):
    source.write_text(SOURCE)
    load(source)
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700


def test_where_it_is_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("UNLEARNKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "unlearnkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "unlearnkit"
