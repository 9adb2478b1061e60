"""Making the original model."""

import json

import pytest

from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.train import train_original
from unlearnkit.models.checkpoint import load_checkpoint
from unlearnkit.models.zoo import small_cnn
from unlearnkit.utils.errors import ConfigurationError, StoreError


def test_the_checkpoint_and_its_record(digits_toml, tmp_path):
    config = load_config(digits_toml, [f"model.checkpoint='{tmp_path}/new/model.safetensors'", "training.epochs=1"])
    record = train_original(config)
    assert json.loads((tmp_path / "new" / "model.json").read_text()) == json.loads(json.dumps(record))
    assert len(record["epochs"]) == 1
    assert record["test"]["samples"] == 450
    assert record["manifest"]["config"]["training"]["epochs"] == 1
    metadata = load_checkpoint(small_cnn(width=4), tmp_path / "new" / "model.safetensors")
    assert metadata == {"unlearnkit.factory": "unlearnkit.models:small_cnn"}


def test_a_checkpoint_is_not_replaced_unasked(digits_toml, trained_checkpoint):
    before = trained_checkpoint.read_bytes()
    with pytest.raises(StoreError, match="already exists"):
        train_original(load_config(digits_toml))
    assert trained_checkpoint.read_bytes() == before


def test_a_folder_that_cannot_be_made_costs_no_training(digits_toml, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("unlearnkit.experiments.train.train", lambda *_, **__: pytest.fail("it trained"))
    config = load_config(digits_toml, [f"model.checkpoint='{tmp_path}/file/new.safetensors'"])
    with pytest.raises(StoreError, match=r"model.checkpoint: cannot make the folder .*file"):
        train_original(config)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_user_s_file_beside_the_checkpoint_stays(digits_toml, tmp_path, overwrite):
    (tmp_path / "mine.json").write_text("{}")
    config = load_config(digits_toml, [f"model.checkpoint='{tmp_path}/mine.safetensors'"])
    with pytest.raises(StoreError, match=r"mine.json: expected the record of an earlier training or nothing"):
        train_original(config, overwrite=overwrite)
    assert (tmp_path / "mine.json").read_text() == "{}"
    with pytest.raises(ConfigurationError, match=r"expected a file for weights, saw .*mine.json"):
        train_original(load_config(digits_toml, [f"model.checkpoint='{tmp_path}/mine.json'"]), overwrite=overwrite)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/tty"])
def test_a_device_as_the_record_beside_the_checkpoint(digits_toml, tmp_path, device):
    (tmp_path / "new.json").symlink_to(device)
    config = load_config(digits_toml, [f"model.checkpoint='{tmp_path}/new.safetensors'"])
    with pytest.raises(StoreError, match=r"new.json: expected the record of an earlier training or nothing"):
        train_original(config)


def test_checkpoint_path_is_required(digits_toml):
    with pytest.raises(ConfigurationError, match="expected a file to write the trained model to"):
        train_original(load_config(digits_toml, ["model.checkpoint=''"]))
