"""Commands on a small ledger, each killed at every one of its file operations, in forks of one process."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import restricted_command  # noqa: F401 - imports what commands need: once here, not in every fork
import torch

import unlearnkit.deletion  # noqa: F401
from unlearnkit.cli.app import app

KILLED = 99
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FORGET = ("forget", "small.toml", "-q")
_FIRST, _SECOND = (*_FORGET, "-r", "first", "-g", "ant"), (*_FORGET, "-r", "second", "-g", "bee")
_STRONG = ("-s", "deletion.method=prune", "-s", "deletion.budget=0")
_LEDGER, _VERIFY = ("ledger", "small.toml", "-q"), ("verify-receipts", "small.toml")

# What was done before, and the command that is killed.
SCENARIOS = {
    "ledger": ((), _LEDGER),
    "ledger --refresh": ((_LEDGER, _FIRST), (*_LEDGER, "--refresh")),
    "forget a group": ((_LEDGER,), _FIRST),
    "forget samples": ((_LEDGER,), (*_FORGET, "-r", "first", "--samples", "ids.txt")),
    "forget, over the budget": ((_LEDGER,), (*_FIRST, *_STRONG)),
    "forget what is forgotten": ((_LEDGER, _FIRST), (*_FORGET, "-r", "second", "-g", "ant")),
    "forget two requests that exclude each other": (
        (_LEDGER, (*_FIRST, "-g", "bee", "--queue"), (*_FORGET, "-r", "second", "-g", "cow", "--queue")),
        _FORGET,
    ),
    "forget --queue": ((_LEDGER,), (*_FIRST, "--queue")),
    "forget --withdraw": ((_LEDGER, (*_FIRST, "--queue")), (*_FORGET, "--withdraw", "first")),
    "rollback": (
        (_LEDGER, *((*c, "-s", "deletion.keep=2") for c in (_FIRST, _SECOND))),
        ("rollback", "small.toml", "-q"),
    ),
    "rollback after --refresh": ((_LEDGER, _FIRST, (*_LEDGER, "--refresh")), ("rollback", "small.toml", "-q")),
    "purge": ((_LEDGER, _FIRST), ("purge", "small.toml", "-q")),
}


def walk(name, template, scratch, numbers, counted):
    """Kill a command at file operations of some numbers, and check what the next one makes of it.

    Args:
        name: Of a scenario.
        template: A folder with data, a configuration and a checkpoint.
        scratch: An empty folder.
        numbers: From 1, rising; it ends where the command has no operation of that number.
        counted: A file for the number of kills.
    """
    os.fsync = lambda _: None  # written data survive a killed process without it
    sys.dont_write_bytecode = True
    earlier, command = SCENARIOS[name]
    start, work = Path(scratch, "start"), Path(scratch, "work")
    shutil.copytree(template, start)
    (start / "tmp").mkdir()
    (start / "ids.txt").write_text("0\n1\n")
    for arguments in earlier:
        assert _call(start, arguments)[0] == 0, arguments
    shutil.copytree(start, work)
    code, said = _call(work, command)
    assert code in {0, 1}, said
    before, after, gone = _receipts(start), _receipts(work), _importances(start, "ant")
    kills = 0
    for number in numbers:
        _again(start, work)
        code, _ = _call(work, command, kill_at=number)
        if code != KILLED:
            break
        kills += 1
        killed = Path(scratch, "killed")
        _again(work, killed)
        where = f"{name}, killed at operation {number}"
        if (work / "out/ledger/ledger.json").exists():  # or else the first `ledger` was killed early: there is none yet
            code, said = _call(work, _FORGET)
            assert code in {0, 1}, (where, said)
            _check(work, gone, where)
            assert _receipts(work)[: len(before)] == before
        _again(killed, work)
        code, said = _call(work, command)
        assert code in {0, 1}, (where, said)
        _check(work, gone, where)
        assert _receipts(work) == after, (where, _receipts(work), after)
    Path(counted).write_text(str(kills))


def _again(source, target):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _check(work, gone, where):
    """The receipts verify, and neither a temporary file nor an importance of what was forgotten is there."""
    code, said = _call(work, _VERIFY)
    assert code == 0, (where, said)
    assert "not finished" not in said, (where, said)
    files = [path for path in work.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix == ".tmp"] == [], where
    assert list((work / "tmp").iterdir()) == [], where
    assert list((work / "out/ledger/pending").iterdir()) == [], where
    receipts = _receipts(work)
    if any(outcome == "forgotten" for outcome, _ in receipts):
        assert [path for path in files if _digest(path) in gone] == [], where
    if receipts[-1][0] == "purged":
        assert len(list((work / "out/ledger/models").iterdir())) == 1, where


def _call(folder, arguments, kill_at=None):
    """Call a command in a fork; return its exit code and what it printed."""
    log = folder.with_name("log")
    child = os.fork()
    if not child:
        _command(folder, arguments, log, kill_at)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text()


def _command(folder, arguments, log, kill_at):
    code = 1
    try:
        torch.set_num_threads(1)
        os.chdir(folder)
        tempfile.tempdir = str(folder / "tmp")
        sys.stdout = sys.stderr = log.open("w")
        if kill_at:
            sys.addaudithook(_Killer(folder, kill_at))
        app(list(arguments))
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        os._exit(code or 0)


class _Killer:
    """Ends the process at a file operation inside a folder, before it happens."""

    def __init__(self, folder, kill_at):
        self.folder, self.left = f"{folder}/", kill_at

    def __call__(self, event, arguments):
        changes = event in _CHANGES or (event == "open" and arguments[2] & _WRITING)
        paths = (os.fspath(a) for a in arguments if isinstance(a, str | os.PathLike))
        if changes and any(f"{Path.cwd() / path}".startswith(self.folder) for path in paths):
            self.left -= 1
            if not self.left:
                os._exit(KILLED)


def _receipts(work):
    contents = [json.loads(p.read_text())["content"] for p in sorted((work / "out/ledger/receipts").glob("*.json"))]
    return [(content["outcome"], content["requests"]) for content in contents]


def _importances(work, group):
    """Digests of the stored importance of a group and of the total that contains it."""
    try:
        content = json.loads((work / "out/ledger/importances-0/manifest.json").read_text())["content"]
    except OSError:
        return set()
    entries = [content["groups"][group]] if group in content["groups"] else []
    shards = [shard for entry in (*entries, content["total"]) for shard in entry["shards"]]
    return {_digest(work / "out/ledger/importances-0" / shard["file"]) for shard in shards} if entries else set()


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
