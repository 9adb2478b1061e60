"""A ledger in the middle of its life, and commands that read every file of it."""

import shutil
import warnings

import pytest
from restricted_command import PASS

from unlearnkit import Importance
from unlearnkit.deletion import Deletion
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run
from unlearnkit.importance.store.store import ImportanceStore
from unlearnkit.models.checkpoint import read_checkpoint
from unlearnkit.unlearning.patch import Patch

LEDGER = """
[deletion]
method = "ssd"
budget = 1.0
keep_as = "patch"
every = 2
"""


def _interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture(scope="session")
def work(tmp_path_factory, trained_checkpoint):
    """A ledger with an edit and a waiting request, a second one that is being started, and a patch; always copied."""
    root = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(root)
        text = (trained_checkpoint.parent / "experiment.toml").read_text()
        (root / "ledger.toml").write_text(text.replace(f"{trained_checkpoint.parent}/", "") + LEDGER)
        shutil.copy(trained_checkpoint, "original.safetensors")
        deletion = Deletion.load(load_config("ledger.toml"))
        deletion.start()
        deletion.ask("ticket-1", groups=["3"])
        assert deletion.work().outcome == "forgotten"
        deletion.ask("ticket-2", groups=["4"])
        kept = deletion.ledger.state.current
        after = read_checkpoint(deletion.ledger.folder / "models" / kept.name)[0]
        Patch.between(read_checkpoint("original.safetensors")[0], after).save("edit")
        interrupted = Deletion.load(load_config("ledger.toml", ["deletion.folder='half'"]))
        patch.setattr(ImportanceStore, "put", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            interrupted.start()
        save = Importance.save
        patch.setattr(Importance, "save", lambda importance, path: _interrupt(save(importance, path)))
        with pytest.raises(KeyboardInterrupt):
            next(run(load_config("ledger.toml", PASS)))
    return root


@pytest.fixture
def folder(work, tmp_path, monkeypatch):
    copy = tmp_path / "work"
    shutil.copytree(work, copy)
    monkeypatch.chdir(copy)
    return copy
