"""Digests of many files: right, and read again only when a file has changed."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from unlearnkit.utils import file_digests as module
from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.file_digests import file_digests


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Ten small files that were written long ago, and a cache of the test's own."""
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_known", {})
    monkeypatch.setattr(module, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(module, "_TICK", -(10**12))  # the files of a test are younger than its clock's tick
    paths = [tmp_path / f"{i}.bin" for i in range(10)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 100)
    return paths


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were read."""
    names, digest = [], module._digest
    monkeypatch.setattr(module, "_digest", lambda name: names.append(Path(name).name) or digest(name))
    return names


def digests(paths):
    return [row.tobytes() for row in file_digests([str(path) for path in paths])]


def expected(paths):
    return [hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in paths]


def test_the_digest_of_each_file(files):
    assert digests(files) == expected(files)
    assert digests(reversed(files)) == expected(reversed(files))
    assert file_digests([]).shape == (0, 16)


@pytest.mark.parametrize("new_process", [False, True])
def test_known_files_are_not_read_again(files, read, monkeypatch, new_process):
    digests(files)
    assert len(read) == 10
    if new_process:
        monkeypatch.setattr(module, "_known", {})
    assert digests(files) == expected(files)
    assert len(read) == 10


@pytest.mark.parametrize("new_process", [False, True])
def test_a_changed_file_is_read_again_also_with_the_old_size_and_modification_time(
    files, read, monkeypatch, new_process
):
    digests(files)
    read.clear()
    before = files[3].stat()
    files[3].write_bytes(b"x" * 100)
    os.utime(files[3], ns=(before.st_atime_ns, before.st_mtime_ns))
    if new_process:
        monkeypatch.setattr(module, "_known", {})
    assert digests(files) == expected(files)
    assert read == ["3.bin"]


def test_a_file_that_was_just_written_is_read_again(files, read, monkeypatch):
    monkeypatch.setattr(module, "_TICK", 10**15)
    digests(files)
    digests(files)
    assert len(read) == 20


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"garbage" * 100])
def test_a_damaged_cache_is_ignored(files, monkeypatch, content):
    digests(files)
    (cache,) = (files[0].parent / "cache").rglob("*.npy")
    for damaged in (content, cache.read_bytes()[:-1]):
        cache.write_bytes(damaged)
        monkeypatch.setattr(module, "_known", {})
        assert digests(files) == expected(files)
    np.save(cache, np.zeros(10))
    monkeypatch.setattr(module, "_known", {})
    assert digests(files) == expected(files)


def test_without_a_cache_folder(files, monkeypatch):
    (files[0].parent / "file").write_text("")
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(files[0].parent / "file"))
    assert digests(files) == expected(files)


def test_a_small_set_leaves_no_cache(files, monkeypatch):
    monkeypatch.setattr(module, "_WORTH_KEEPING", 10 * (100 + 2**14) + 1)
    digests(files)
    assert not (files[0].parent / "cache").exists()


def test_a_missing_file_a_folder_and_a_device(files, tmp_path):
    for path in (tmp_path / "absent", tmp_path, "/dev/zero"):
        with pytest.raises(StoreError, match=r"cannot read|expected a file, saw a folder or a device"):
            digests([*files, path])
