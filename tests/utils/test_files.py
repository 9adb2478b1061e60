"""Files are written atomically."""

import os
import stat
from pathlib import Path

import forked_process as forked
import pytest
from overwrite_and_kill import hold_in_turns

from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.files import atomic_folder, atomic_write, locked_folder, write_text


def test_a_finished_block_puts_its_file_in_place(tmp_path):
    target = tmp_path / "note.txt"
    with atomic_write(target) as temporary:
        assert temporary.parent == tmp_path
        assert not target.exists()
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_the_bytes_are_on_the_disk_before_the_rename_and_the_rename_at_the_end(tmp_path, monkeypatch):
    events, replace = [], Path.replace
    monkeypatch.setattr(os, "fsync", lambda _: events.append("fsync"))
    monkeypatch.setattr(Path, "replace", lambda path, target: events.append("rename") or replace(path, target))
    write_text(tmp_path / "new" / "note.txt", "text")
    assert events == ["fsync", "rename", "fsync"]
    assert (tmp_path / "new" / "note.txt").read_text() == "text"


def test_a_text_path_will_do(tmp_path):
    with atomic_write(str(tmp_path / "note.txt")) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "note.txt").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_exception_leaves_the_old_file_and_no_temporary_file(tmp_path, error):
    target = tmp_path / "note.txt"
    target.write_text("old")

    def fail():
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_exception_before_there_was_a_file_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="broken"), atomic_write(tmp_path / "note.txt"):
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    with atomic_write(tmp_path / "atomic") as temporary:
        temporary.unlink()  # some writers replace the file instead of filling it
        temporary.touch(mode=0o600)
    (tmp_path / "plain").touch()
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_existing_file_keeps_its_permissions(tmp_path):
    target = tmp_path / "note.txt"
    target.write_text("old")
    target.chmod(0o640)
    with atomic_write(target) as temporary:
        temporary.write_text("new")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_write(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_concurrent_writers_do_not_interfere(tmp_path):
    target = tmp_path / "note.txt"
    with atomic_write(target) as outer, atomic_write(target) as inner:
        assert outer != inner
        outer.write_text("outer")
        inner.write_text("inner")
    assert target.read_text() == "outer"


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(StoreError, match=r"expected the folder .*absent to exist.*create it"),
        atomic_write(tmp_path / "absent" / "note.txt"),
    ):
        pytest.fail("the block must not run")


def test_a_folder_is_no_file_name(tmp_path):
    with pytest.raises(StoreError, match="expected a file name"), atomic_write(tmp_path):
        pytest.fail("the block must not run")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError("not allowed")

    monkeypatch.setattr(Path, "touch", refuse)  # not chmod: root may write anywhere
    with (
        pytest.raises(StoreError, match=r"cannot write to the folder .*not allowed: choose another folder"),
        atomic_write(tmp_path / "note.txt"),
    ):
        pytest.fail("the block must not run")


def test_a_block_that_loses_its_file_is_an_error(tmp_path):
    target = tmp_path / "note.txt"
    target.write_text("old")
    with pytest.raises(StoreError, match="cannot finish writing"), atomic_write(target) as temporary:
        temporary.unlink()
    assert target.read_text() == "old"


def test_finished_folder_replaces_the_old_one_completely(tmp_path):
    folder = tmp_path / "results"
    for text in ("one", "two"):
        with atomic_folder(folder) as new:
            (new / f"{text}.txt").write_text(text)
    assert [path.name for path in folder.iterdir()] == ["two.txt"]
    with pytest.raises(KeyError), atomic_folder(folder) as new:
        raise KeyError
    assert (folder / "two.txt").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_locked_folder_is_held_alone_and_left_without_a_trace(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked_folder(folder):
        refused = pytest.raises(StoreError, match=r"another process is writing to .*b: wait until it has ended")
        with refused, locked_folder(folder):
            pass
        (folder / "note.txt").write_text("")
    assert [p.name for p in folder.iterdir()] == ["note.txt"]
    with pytest.raises(ZeroDivisionError), locked_folder(tmp_path / "c"):
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_folder_that_cannot_be_locked(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to the folder .*file"), locked_folder(tmp_path / "file"):
        pass


def test_files_named_like_those_of_a_killed_replacement_stay(tmp_path):
    names = [".m.notes.old", ".m.old", ".m.abc.old.txt", ".mine.abc.old"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".m.abcd.new").mkdir()
    with atomic_folder(tmp_path / "m"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "m"])


def test_many_processes_hold_a_folder_in_turns(tmp_path):
    (tmp_path / "keep").touch()
    forked.run_all(hold_in_turns, [(tmp_path, 30)] * 3)
    assert sorted(p.name[:4] for p in tmp_path.iterdir()) == ["done"] * 3 + ["keep"]
