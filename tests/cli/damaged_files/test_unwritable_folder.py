"""A full disk and a read-only folder: one message, exit code 2, and no lost data."""

import forked_process as forked
import pytest
from restricted_command import APPLY, FORGET, GO_ON, INSPECT, ROLLBACK, RUN, VERIFY, command, everything
from typer.testing import CliRunner

from unlearnkit.cli.app import app
from unlearnkit.importance.store.store import ImportanceStore, Writer
from unlearnkit.utils.errors import StoreError

WRITING = {
    "forget": FORGET,
    "queue": (*FORGET, "-r", "ticket-3", "-g", "5", "--queue"),
    "rollback": ROLLBACK,
    "purge": ("purge", "ledger.toml", "-q"),
    "go on": GO_ON,
    "start": ("ledger", "ledger.toml", "-q", "--set", "deletion.folder='new'"),
    "refresh": ("ledger", "ledger.toml", "-q", "--refresh"),
    "run": RUN,
    "run again": (*RUN, "--set", "output='results'", "--overwrite"),
    "train": ("train", "ledger.toml", "-q", "--overwrite"),
    "patch apply": APPLY,
    "patch diff": ("patch", "diff", "original.safetensors", "original.safetensors", "new"),
}
MORE = [pytest.param(size, marks=pytest.mark.slow) for size in (6_000, 60_000)]


@pytest.fixture
def call(folder, tmp_path):
    """Calls a command in another process; returns its exit code and output."""
    (folder / "results" / "ssd").mkdir(parents=True)
    (folder / "results" / "prune").mkdir()

    def call(arguments, **limits):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        code = forked.run(command, arguments, str(folder), str(log), **limits)
        return code, " ".join(log.read_text().split())

    return call


@pytest.mark.parametrize("name", WRITING)
def test_a_read_only_folder(folder, call, name):
    before = everything(folder)
    code, said = call(WRITING[name], read_only=True)
    assert code == 2, said
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert "Read-only file system" in said
    assert everything(folder) == before


@pytest.mark.parametrize("arguments", [VERIFY, INSPECT])
def test_reading_a_read_only_folder(call, arguments):
    code, said = call(arguments, read_only=True)
    assert code == 0, said


@pytest.mark.parametrize(
    "largest", [2_000, 20_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (6_000, 60_000))]
)
@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk(folder, call, name, largest):
    before = everything(folder)
    code, said = call(WRITING[name], largest=largest)
    if code == 0:
        return
    assert code == 2, said
    assert said.startswith("error: ")
    assert "Traceback" not in said
    kept = everything(folder)
    assert "It is decided" in said or {key: kept.get(key) for key in before} == before
    assert [p for p in folder.rglob("*") if p.suffix == ".tmp"] == []
    code, said = call(WRITING[name])
    assert code == 0, said
    code, said = call(VERIFY)
    assert code == 0, said


def test_disk_full_after_the_decision_is_recorded(folder, monkeypatch):
    """The smaller store cannot be written: a later command finishes the request, once."""
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", lambda *_, **__: (_ for _ in ()).throw(StoreError("No space left on device")))
        result = CliRunner().invoke(app, list(FORGET))
    said = " ".join(result.output.split())
    assert result.exit_code == 2
    assert said.startswith("error: No space left on device; Receipt 3 (ticket-2): 136 samples were forgotten")
    assert "It is decided, and the next command on the ledger finishes it." in said
    assert CliRunner().invoke(app, list(VERIFY)).exit_code == 0
    again = CliRunner().invoke(app, list(FORGET))
    assert "no request is waiting" in again.output
    assert ImportanceStore.open("out/ledger/importances-0").keys == tuple("01256789")
    assert CliRunner().invoke(app, list(VERIFY)).exit_code == 0
