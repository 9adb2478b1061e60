"""Safetensors files: tensors that share memory are copied, others are not."""

import pytest
import torch
from peak_memory import peak
from safetensors.torch import load_file

from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.safetensors import save_tensors


def kinds():
    flat = torch.arange(12.0)
    return {
        "halves of one": {"a": flat[:6], "b": flat[6:]},
        "one under two names": {"a": flat, "b": flat},
        "one in two shapes": {"a": flat, "b": flat.view(3, 4)},
        "transposed": {"a": flat.view(3, 4).t()},
        "with gaps": {"a": flat[::3]},
        "part of a larger one": {"a": flat[2:5]},
        "none at all": {"a": torch.empty(0), "b": torch.empty(2, 0)},
        "that wants a gradient": {"a": torch.ones(2, requires_grad=True)},
        "a single number": {"a": torch.tensor(3)},
    }


@pytest.mark.parametrize("kind", kinds())
def test_read_equals_written(kind, tmp_path):
    tensors = kinds()[kind]
    save_tensors(tensors, tmp_path / "file", {"note": "text"})
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.detach())
        assert found[name].dtype == tensor.dtype


def test_contiguous_tensor_is_written_without_a_copy(tmp_path):
    tensors = {"a": torch.ones(256, 1024), "b": torch.ones(1024)}
    assert peak(lambda: save_tensors(tensors, tmp_path / "file")) == 0
    views = {"a": torch.ones(512, 1024)[:256]}
    assert peak(lambda: save_tensors(views, tmp_path / "file")) == views["a"].nbytes


def test_failure_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    def full(_, path, __):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr("unlearnkit.utils.safetensors.save_file", full)
    with pytest.raises(StoreError, match=r"cannot write .*file: .*No space left on device: nothing was changed"):
        save_tensors({"a": torch.ones(2)}, tmp_path / "file", hint=": nothing was changed")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]
