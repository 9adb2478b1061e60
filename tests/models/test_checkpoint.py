"""Checkpoints are loaded completely or refused."""

import itertools
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from unlearnkit.models.checkpoint import load_checkpoint, save_checkpoint
from unlearnkit.models.parameters import digest
from unlearnkit.models.zoo import small_cnn
from unlearnkit.utils.errors import ConfigurationError, MismatchError, StoreError


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


def trained():
    model = small_cnn(seed=1)
    model(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))  # moves the running statistics
    return model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_save_and_load_round_trip(path):
    model, other = trained(), small_cnn(seed=2)
    save_checkpoint(model, path, {"epochs": "5", "δ": "é"})
    assert load_checkpoint(other, path) == {"epochs": "5", "δ": "é"}
    assert digest(other) == digest(model)
    assert list(path.parent.iterdir()) == [path]


def test_the_file_holds_the_names_and_values_of_the_state(path):
    model = trained()
    save_checkpoint(model, path)
    state, written = model.state_dict(), load_file(path)
    assert set(written) == set(state)
    assert all(torch.equal(written[name], state[name]) for name in state)
    assert load_checkpoint(model, path) == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_bit_survives(path, dtype):
    model = nn.Linear(3, 2).to(dtype)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([-0.0, torch.nan]))
    save_checkpoint(model, path)
    other = nn.Linear(3, 2).to(dtype)
    load_checkpoint(other, path)
    assert digest(other) == digest(model)


def test_parameters_stay_the_same_objects(path):
    model = trained()
    save_checkpoint(model, path)
    before = list(model.parameters())
    load_checkpoint(model, path)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))


def test_tied_weights_are_written_once_and_stay_tied(path):
    model, other = Tied(), Tied()
    save_checkpoint(model, path)
    assert sorted(load_file(path)) == ["body.bias", "body.weight", "embed.weight"]
    load_checkpoint(other, path)
    assert digest(other) == digest(model)
    assert other.head.weight is other.embed.weight


def test_every_name_of_a_tied_weight_is_accepted(path):
    model, other = Tied(), Tied()
    save_model(model, str(path))  # this one keeps the first name in alphabetical order
    tensors = load_file(path)
    tensors["head.weight"] = tensors.pop("embed.weight")
    save_file(tensors, path)
    load_checkpoint(other, path)
    assert digest(other) == digest(model)


def test_tied_weights_that_differ_in_the_file_are_refused(path):
    model = Tied()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["head.weight"] += 1
    save_file(tensors, path)
    with pytest.raises(MismatchError, match=r"embed.weight, head.weight: one tensor in the model, but different"):
        load_checkpoint(model, path)


def test_weights_that_are_views_or_transposed(path):
    flat, model = torch.arange(6.0), nn.Linear(2, 2)
    model.weight = nn.Parameter(flat[:4].view(2, 2).T)
    model.bias = nn.Parameter(flat[4:])
    save_checkpoint(model, path)
    other = nn.Linear(2, 2)
    load_checkpoint(other, path)
    assert other.weight.tolist() == [[0.0, 2.0], [1.0, 3.0]]
    assert other.bias.tolist() == [4.0, 5.0]


def test_a_compiled_model_has_the_names_of_the_model_it_wraps(path):
    model, other = trained(), small_cnn(seed=2)
    save_checkpoint(torch.compile(model), path)
    load_checkpoint(other, path)
    assert digest(other) == digest(model)
    load_checkpoint(torch.compile(other), path)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_the_prefix_of_data_parallel_is_added_or_taken_away(tmp_path, suffix):
    model, path = trained(), tmp_path / f"model.{suffix}"
    for saved, loaded in itertools.product((nn.Identity(), Wrapped), repeat=2):
        wrap = [Wrapped if kind is Wrapped else lambda m: m for kind in (saved, loaded)]
        state = wrap[0](trained()).state_dict()
        save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
        other = small_cnn(seed=2)
        load_checkpoint(wrap[1](other), path, allow_pickle=True)
        assert digest(other) == digest(model)


class Wrapped(nn.Module):
    """Names its parameters as DistributedDataParallel does, which needs a process group."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.", "model._orig_mod."])
def test_a_prefix_of_all_names_is_taken_away(tmp_path, prefix):
    model, path = trained(), tmp_path / "last.ckpt"
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "global_step": 9, "hyper_parameters": {"lr": 0.1}, "state_dict": state}, path)
    other = small_cnn(seed=2)
    with pytest.raises(StoreError, match="allow_pickle=True"):
        load_checkpoint(other, path)
    load_checkpoint(other, path, allow_pickle=True)
    assert digest(other) == digest(model)


def test_weights_beside_the_model_do_not_fit(tmp_path):
    state = {f"model.{name}": tensor for name, tensor in trained().state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(10)}}, tmp_path / "last.ckpt")
    model = small_cnn(seed=2)
    with pytest.raises(MismatchError, match=r"model.features.0.weight: in the file, but not in the model"):
        load_checkpoint(model, tmp_path / "last.ckpt", allow_pickle=True)
    assert digest(model) == digest(small_cnn(seed=2))


def test_a_checkpoint_of_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"width": 4})
            self.model = small_cnn(seed=1)

    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    module = Module()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = small_cnn(seed=2)
    load_checkpoint(other, tmp_path / "last.ckpt", allow_pickle=True)
    assert digest(other) == digest(module.model)


def test_a_tied_weight_that_hugging_face_leaves_out(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)
    model, other = (transformers.GPT2LMHeadModel(config) for _ in range(2))
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load_checkpoint(other, tmp_path / "model.safetensors")
    assert digest(other) == digest(model)
    assert other.lm_head.weight is other.transformer.wte.weight


def test_a_file_with_the_prefix_on_some_names_does_not_fit(path):
    state = trained().state_dict()
    save_file({("module." + name if name.startswith("head") else name): t for name, t in state.items()}, path)
    with pytest.raises(MismatchError, match=r"module.head.weight: in the file, but not in the model"):
        load_checkpoint(small_cnn(seed=2), path)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_every_mismatch_is_listed_and_the_model_is_unchanged(path):
    save_file({
        "weight": torch.zeros(3, 2),
        "bias": torch.zeros(2, dtype=torch.float16),
        "extra": torch.zeros(1),
        "running_mean": torch.zeros(2),
    }, path)  # fmt: skip
    model = nn.BatchNorm1d(2)
    before = digest(model)
    with pytest.raises(MismatchError, match="does not fit BatchNorm1d: 5 problems") as caught:
        load_checkpoint(model, path)
    message = str(caught.value)
    assert "weight: expected shape (2,), saw (3, 2)" in message
    assert "bias: expected torch.float32, saw torch.float16" in message
    assert "extra: in the file, but not in the model" in message
    assert "running_var: expected, but missing in the file" in message
    assert "num_batches_tracked: expected, but missing in the file" in message
    assert digest(model) == before


def test_meta_device_model_is_refused(path):
    save_checkpoint(nn.Linear(2, 2), path)
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(MismatchError, match="weight: expected memory to load into, saw the meta device"):
        load_checkpoint(model, path)


def test_a_loading_hook_that_fails_half_way_leaves_the_model_unchanged(path):
    class Picky(nn.Linear):
        def _load_from_state_dict(self, *arguments):
            super()._load_from_state_dict(*arguments)
            if bool((self.weight == 1).all()):
                raise RuntimeError("picky")

    model = nn.Sequential(nn.Linear(2, 2), Picky(2, 2))
    with torch.no_grad():
        other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        other[1].weight.fill_(1.0)
    save_checkpoint(other, path)
    before = digest(model)
    with pytest.raises(RuntimeError, match="picky"):
        load_checkpoint(model, path)
    assert digest(model) == before


# --- files that cannot be read ----------------------------------------------------------------------------------------


def test_a_missing_file_or_a_folder(tmp_path):
    with pytest.raises(StoreError, match=r"expected a checkpoint at .*absent, saw nothing"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "absent")
    with pytest.raises(StoreError, match="saw a folder"):
        load_checkpoint(nn.Linear(1, 1), tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 8, 9, 100, -1])
def test_a_truncated_file(path, keep):
    model = trained()
    save_checkpoint(model, path)
    path.write_bytes(path.read_bytes()[:keep])
    before = digest(model)
    with pytest.raises(StoreError, match="is damaged or not a safetensors file"):
        load_checkpoint(model, path)
    assert digest(model) == before


def test_header_with_a_wrong_length(path):
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(StoreError, match="is damaged"):
        load_checkpoint(nn.Linear(1, 1), path)


# --- pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("modern", [True, False])
def test_a_pickle_must_be_allowed(tmp_path, name, modern):
    model, other = trained(), small_cnn(seed=2)
    torch.save(model.state_dict(), tmp_path / name, _use_new_zipfile_serialization=modern)
    with pytest.raises(StoreError, match=r"is a pickle, which can run code .* allow_pickle=True"):
        load_checkpoint(other, tmp_path / name)
    assert load_checkpoint(other, tmp_path / name, allow_pickle=True) == {}
    assert digest(other) == digest(model)


def test_tied_weights_from_a_pickle(tmp_path):
    model, other = Tied(), Tied()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    load_checkpoint(other, tmp_path / "model.pth", allow_pickle=True)
    assert digest(other) == digest(model)
    assert other.head.weight is other.embed.weight


def test_a_pickle_that_runs_code_is_refused_even_when_allowed(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'harm'}",)

    torch.save({"weight": Harm()}, tmp_path / "model.pt")
    with pytest.raises(StoreError, match="is damaged or holds more than weights"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "model.pt", allow_pickle=True)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [{"model": {}, "epoch": 3}, [torch.zeros(1)]])
def test_a_pickle_that_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(StoreError, match=r"expected names and tensors, as model.state_dict\(\) returns"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "model.pt", allow_pickle=True)


@pytest.mark.parametrize("keep", [0, 2, 100, -30])
def test_a_truncated_pickle(tmp_path, keep):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(4, 4).state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match="is damaged"):
        load_checkpoint(nn.Linear(4, 4), path, allow_pickle=True)


def test_safetensors_under_a_pickles_name_are_no_pickle(tmp_path):
    save_checkpoint(nn.Linear(1, 1), tmp_path / "model.pt")
    assert load_checkpoint(nn.Linear(1, 1), tmp_path / "model.pt") == {}


def test_header_length_that_looks_like_a_pickle_is_not_one(path):
    model = nn.Linear(1, 1)
    for size in range(1, 400):
        save_checkpoint(model, path, {"pad": "x" * size})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes().startswith(b"\x80")
    assert load_checkpoint(model, path) == {"pad": "x" * size}


# --- writing ----------------------------------------------------------------------------------------------------------


def test_metadata_must_be_text(path):
    with pytest.raises(ConfigurationError, match="metadata: 'epochs': expected text for key and value, saw 5"):
        save_checkpoint(nn.Linear(1, 1), path, {"epochs": 5})
    assert not path.exists()


def test_failure_keeps_the_old_file(path, monkeypatch):
    save_checkpoint(trained(), path)
    old = path.read_bytes()

    def fail(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("unlearnkit.utils.safetensors.save_file", fail)
    with pytest.raises(StoreError, match=r"cannot write .*model.safetensors: disk full"):
        save_checkpoint(small_cnn(), path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_state_that_is_not_tensors(path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"version": 1}

    with pytest.raises(StoreError, match="the state of Extra: _extra_state: expected a tensor, saw dict"):
        save_checkpoint(Extra(1, 1), path)
    assert not path.exists()


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(StoreError, match="create it first"):
        save_checkpoint(nn.Linear(1, 1), tmp_path / "absent" / "model.safetensors")


@pytest.mark.gpu
def test_a_model_on_a_gpu(path):
    model = trained().cuda()
    save_checkpoint(model, path)
    other = small_cnn(seed=2).cuda()
    load_checkpoint(other, path)
    assert digest(other) == digest(model)
    assert next(other.parameters()).is_cuda
