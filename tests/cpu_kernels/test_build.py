"""Compilation on demand: once, atomically, in a folder that only the user can write to."""

import hashlib
import os
import stat
import time
from pathlib import Path

import pytest
from compiler import HAS_COMPILER
from unlearnkit_cpu_kernels import build
from unlearnkit_cpu_kernels.build import cache_folder, load

from unlearnkit import ConfigurationError
from unlearnkit.importance import KernelUnavailableError

SOURCE = '#include <cstdint>\nextern "C" int64_t twice(int64_t n) { return 2 * n; }\n'
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source of its own, an empty cache, and a process that has loaded nothing."""
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_loaded", {})
    path = tmp_path / "twice.cpp"
    path.write_text(SOURCE)
    return path


def kept(source):
    return sorted(path.name for path in (source.parent / "cache").iterdir())


def place(source):
    """Path of its library."""
    return cache_folder() / f"twice-{build._key(source.read_bytes())}.so"


def again():
    build._loaded.clear()


@needs_compiler
def test_second_load_needs_no_compiler(source, monkeypatch):
    assert load(source).twice(21) == 42
    digest, built = kept(source)
    assert (built, digest) == (place(source).name, place(source).with_suffix(".sha256").name)
    again()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load(source).twice(4) == 8


@needs_compiler
def test_library_name_depends_on_source_and_compiler_flags(source, monkeypatch):
    load(source)
    again()
    source.write_text(SOURCE.replace("2 * n", "3 * n"))
    assert load(source).twice(2) == 6
    again()
    monkeypatch.setattr(build, "_INSTRUCTIONS", {})
    monkeypatch.setattr(build, "_FLAGS", ("-O1", "-shared", "-fPIC"))
    assert load(source).twice(2) == 6
    assert len(kept(source)) == 6


@needs_compiler
def test_failed_compilation_leaves_no_file_and_is_not_retried(source, monkeypatch):
    source.write_text("extern int wrong(")
    with pytest.raises(ConfigurationError, match=r"failed:\n.*twice\.cpp"):
        load(source)
    assert kept(source) == []
    monkeypatch.setattr(build, "_run", None)
    with pytest.raises(ConfigurationError, match="failed"):
        load(source)


@needs_compiler
@pytest.mark.parametrize("damage", [b"", b"not a library"])
def test_library_with_a_wrong_digest_is_recompiled(source, damage, caplog):
    load(source)
    again()
    other = place(source)
    other.unlink()  # this process has the old one mapped
    other.write_bytes(damage)
    other.chmod(0o600)
    with caplog.at_level("INFO", logger="unlearnkit"):
        assert load(source).twice(3) == 6
    assert "not as it was compiled" in caplog.text
    assert hashlib.sha256(place(source).read_bytes()).hexdigest() == other.with_suffix(".sha256").read_text()


@needs_compiler
def test_library_without_a_digest_is_recompiled(source):
    load(source)
    again()
    place(source).with_suffix(".sha256").unlink()
    assert load(source).twice(3) == 6
    assert len(kept(source)) == 2


def test_unloadable_library_is_reported(source):
    built = place(source)
    built.parent.mkdir(mode=0o700)
    built.write_bytes(b"not a library")
    built.with_suffix(".sha256").write_text(hashlib.sha256(b"not a library").hexdigest())
    for path in (built, built.with_suffix(".sha256")):
        path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"cannot load a compiled kernel .*: delete .*twice-"):
        load(source)


@needs_compiler
@pytest.mark.parametrize("which", ["library", "digest", "folder"])
@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_paths_writable_by_others_are_refused(source, which, mode):
    load(source)
    again()
    built = place(source)
    path = {"library": built, "digest": built.with_suffix(".sha256"), "folder": built.parent}[which]
    path.chmod(mode | (0o100 if which == "folder" else 0))
    with pytest.raises(ConfigurationError, match="write access for others"):
        load(source)


@needs_compiler
@pytest.mark.parametrize("which", ["library", "digest", "folder"])
def test_symbolic_links_are_refused(source, which, tmp_path):
    load(source)
    again()
    built = place(source)
    path = {"library": built, "digest": built.with_suffix(".sha256"), "folder": built.parent}[which]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="a symbolic link"):
        load(source)


@needs_compiler
def test_paths_of_another_owner_are_refused(source, monkeypatch):
    load(source)
    again()
    mine = os.geteuid()
    monkeypatch.setattr(build.os, "geteuid", lambda: mine + 1)
    with pytest.raises(ConfigurationError, match=f"saw owner {mine}"):
        load(source)


@needs_compiler
def test_cache_folder_is_private_to_the_user(source):
    cache_folder().mkdir(mode=0o755)
    cache_folder().chmod(0o755)
    load(source)
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in cache_folder().iterdir() if path.suffix == ".so"} == {
        0
    }


@needs_compiler
def test_library_is_synced_before_it_is_renamed(source, monkeypatch):
    events, rename = [], Path.replace
    monkeypatch.setattr(build.os, "fsync", lambda _: events.append("fsync"))
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("rename"), rename(self, to))[1])
    load(source)
    assert events == ["fsync", "rename", "fsync", "rename", "fsync"]


def test_slow_compiler_is_killed_with_its_children(source, monkeypatch, tmp_path):
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\n(sleep 3; touch {tmp_path}/survived) &\nsleep 60\n")
    slow.chmod(0o700)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr(build, "_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"took more than 0\.2 seconds"):
        load(source)
    assert time.monotonic() - start < 30
    time.sleep(3.5)
    assert not (tmp_path / "survived").exists()
    assert kept(source) == []


def test_missing_compiler_is_reported(source, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelUnavailableError, match=r"need a C\+\+ compiler .* saw CXX=no-such-compiler"):
        load(source)
    again()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(source.parent))
    with pytest.raises(KernelUnavailableError, match="saw none on the path"):
        load(source)


@needs_compiler
def test_folder_that_cannot_be_created_is_reported(source):
    (source.parent / "cache").write_text("a file")
    with pytest.raises(KernelUnavailableError, match="set UNLEARNKIT_CACHE to a folder"):
        load(source)


def test_location_of_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("UNLEARNKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "unlearnkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "unlearnkit"
    for home in ("", "relative"):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(KernelUnavailableError, match="no folder of the user's own"):
            cache_folder()
