"""Patches: worked examples, bit-exact apply and revert, and refusals."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from unlearnkit import MismatchError
from unlearnkit.cli.app import app
from unlearnkit.models.checkpoint import REQUESTS, applied_requests, model_state, read_checkpoint, save_checkpoint
from unlearnkit.models.parameters import bits, digest_tensors
from unlearnkit.testing import strategies
from unlearnkit.unlearning.patch import Patch, TensorPatch
from unlearnkit.utils.errors import StoreError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def same(one, other):
    return set(one) == set(other) and all(torch.equal(bits(one[n]), bits(other[n])) for n in one)


def test_worked_example():
    before, after = torch.tensor([1.0, 2.0, -3.0, 0.0, 5.0]), torch.tensor([1.0, 0.5, 0.0, 7.0, 0.0])
    patch = TensorPatch.between(before, after, keep_old=True)
    assert patch.index.tolist() == [1, 2, 4]
    assert patch.factor.tolist() == [0.25, 0.0, 0.0]
    assert patch.value_index.tolist() == [3]  # nothing times 0 is 7
    assert patch.value.tolist() == [7.0]
    assert patch.old.tolist() == [2.0, -3.0, 5.0, 0.0]
    assert torch.equal(patch.apply(before), after)
    patch.undo(after)
    assert torch.equal(after, before)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@given(data=st.data())
def test_apply_and_revert_are_bit_exact(dtype, data):
    shape = data.draw(strategies.shapes())
    before, after = (
        {"w": data.draw(strategies.tensors(shape=shape, dtype=dtype)), "n": torch.tensor([n])} for n in (3, 4)
    )
    patch = Patch.between(before, after)
    assert same(patch.apply(before), after)
    assert same(patch.revert(after), before)


def models():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    states = [{n: t.clone() for n, t in model_state(model).items()}]
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(4, 3).round() * 0.3)
        states.append({n: t.clone() for n, t in model_state(model).items()})
        model[2].weight[0] = 0
        model[1].running_mean.add_(1)
        model[1].num_batches_tracked.add_(1)
        states.append({n: t.clone() for n, t in model_state(model).items()})
    return states


def test_a_whole_model_with_buffers(tmp_path):
    first, _, last = models()
    patch = Patch.between(first, last, about={"method": "ssd"})
    assert set(patch.tensors) == {"0.weight", "1.running_mean", "1.num_batches_tracked", "2.weight"}
    patch.save(tmp_path / "p.safetensors")
    again = Patch.load(tmp_path / "p.safetensors")
    assert same(again.apply(first), last)
    assert same(again.revert(last), first)
    assert again.inspect() == patch.inspect()
    assert again.inspect()["about"] == {"method": "ssd"}
    assert again.inspect()["changed"] == patch.changed > 0


def test_complex_tensors(tmp_path):
    before = {"w": torch.ones(3), "c": torch.tensor([1 + 2j, 3 - 1j]), "kept": torch.tensor([1j])}
    after = {"w": torch.tensor([1.0, 2.0, 1.0]), "c": torch.tensor([1 + 2j, 3 + 1j]), "kept": torch.tensor([1j])}
    Patch.between(before, after).save(tmp_path / "p.safetensors")
    patch = Patch.load(tmp_path / "p.safetensors")
    assert patch.inspect()["tensors"] == {"w": 1, "c": 1}
    assert same(patch.apply(before), after)
    assert same(patch.revert(after), before)


def test_composed_patches_equal_one_patch():
    first, middle, last = models()
    both = Patch.between(first, middle).then(Patch.between(middle, last), first)
    assert same(both.apply(first), last)
    assert same(both.revert(last), first)
    with pytest.raises(MismatchError, match="expected a second patch made for"):
        Patch.between(first, middle).then(Patch.between(first, last), first)


def test_empty_patch():
    first = models()[0]
    patch = Patch.between(first, first)
    assert (patch.changed, patch.tensors) == (0, {})
    assert same(patch.apply(first), first)


def test_patch_without_old_values_cannot_be_reverted_and_holds_no_weight(tmp_path):
    first, middle, _ = models()
    for patch in (Patch.between(first, middle, keep_old=False), Patch.between(first, middle).without_old()):
        assert not patch.reversible
        assert same(patch.apply(first), middle)
        with pytest.raises(MismatchError, match="expected a patch with old values"):
            patch.revert(middle)
        patch.save(tmp_path / "p.safetensors")
        assert not Patch.load(tmp_path / "p.safetensors").reversible


def test_a_patch_for_another_model_is_refused():
    first, middle, last = models()
    patch = Patch.between(first, middle)
    with pytest.raises(MismatchError, match=f"made for, {digest_tensors(first)}, saw {digest_tensors(last)}"):
        patch.apply(last)
    with pytest.raises(MismatchError, match="that makes"):
        patch.revert(first)
    with pytest.raises(MismatchError, match="only in the model before"):
        Patch.between(first, {})
    with pytest.raises(MismatchError, match=r"0.weight: \(4, 3\) of torch.float32 against \(4, 3\) of torch.float64"):
        Patch.between(first, {n: t.double() if n == "0.weight" else t for n, t in first.items()})


def test_damaged_files(tmp_path):
    first, middle, _ = models()
    path = tmp_path / "p.safetensors"
    Patch.between(first, middle).save(path)
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 4
        path.write_bytes(bad)
        with pytest.raises(StoreError):
            Patch.load(path)
    path.write_bytes(good[:100])
    with pytest.raises(StoreError):
        Patch.load(path)
    save_checkpoint(nn.Linear(2, 2), path)
    with pytest.raises(StoreError, match="expected a patch"):
        Patch.load(path)
    with pytest.raises(StoreError):
        Patch.load(tmp_path / "none")


def test_positions_outside_the_tensor_are_refused(tmp_path):
    first, middle, _ = models()
    patch = Patch.between(first, middle)
    patch.tensors["0.weight"].index[-1] = 10**6
    with pytest.raises(MismatchError, match="expected index between 0 and 11, saw"):
        patch.apply(first)
    patch.tensors["0.weight"].index[-1] = -1
    patch.save(tmp_path / "p.safetensors")
    with pytest.raises(StoreError, match="rising int64 numbers"):
        Patch.load(tmp_path / "p.safetensors")


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(3, 2)
    names = ["a.safetensors", "b.safetensors", "c.safetensors"]
    for name in names:
        save_checkpoint(model, name, {"made": "here"})
        with torch.no_grad():
            model.weight.mul_(0.5)

    def call(*arguments):
        return CliRunner().invoke(app, ["patch", *arguments])

    assert call("diff", *names[:2], "ab").exit_code == 0
    assert call("diff", *names[1:], "bc", "--no-keep-old").exit_code == 0
    assert call("compose", "ab", "bc", names[0], "ac").exit_code == 0
    assert call("apply", "ac", names[0], "made").exit_code == 0
    assert same(read_checkpoint("made")[0], read_checkpoint(names[2])[0])
    assert read_checkpoint("made")[1] == {"made": "here"}
    assert call("revert", "ab", names[1], "back").exit_code == 0
    assert same(read_checkpoint("back")[0], read_checkpoint(names[0])[0])
    assert json.loads(call("inspect", "ab").output)["factors"] == [0.5, 0.5]
    refused = call("apply", "ab", names[2], "other")
    assert refused.exit_code == 2
    assert "another model" in refused.output
    assert call("apply", "ab", names[0], "made").exit_code == 2
    assert "already exists" in call("diff", *names[:2], "ab").output


def test_the_forget_sets_that_were_applied_go_with_the_patch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(3, 2)
    applied = [[], ["one"], ["one", "two"]]
    for name, requests in zip("abc", applied, strict=True):
        save_checkpoint(model, name, {REQUESTS: json.dumps(requests)} if requests else {})
        with torch.no_grad():
            model.weight.mul_(0.5)
    steps = [("diff", "a", "b", "ab"), ("diff", "b", "c", "bc"), ("compose", "ab", "bc", "a", "ac")]
    steps += [
        ("apply", "bc", "b", "c2"),
        ("apply", "ac", "a", "c3"),
        ("revert", "bc", "c", "b2"),
        ("revert", "ac", "c", "a2"),
    ]
    for arguments in steps:
        assert CliRunner().invoke(app, ["patch", *arguments]).exit_code == 0, arguments
    found = [applied_requests(read_checkpoint(name)[1]) for name in ("a2", "b2", "c2", "c3")]
    assert found == [applied[0], applied[1], applied[2], applied[2]]
