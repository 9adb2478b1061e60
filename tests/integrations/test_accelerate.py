"""Models that accelerate has placed: one device is edited like any model, offloaded weights are refused."""

import copy

import pytest
import torch
from torch import nn

from unlearnkit import UnsupportedModelError, unlearn
from unlearnkit.models import digest

accelerate = pytest.importorskip("accelerate")

DATA = {
    "forget": [(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 1]))],
    "retain": [(torch.tensor([[-1.0, 2.0], [3.0, -4.0]]), torch.tensor([1, 0]))],
}
METHODS = [("ssd", {"fraction": 0.5}), ("neg-grad-plus", {"beta": 0.5}), ("finetune", {})]
INPUT = DATA["forget"][0][0]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_model_on_one_device_is_edited_like_any_other(method, options):
    plain, placed = net(), accelerate.dispatch_model(net(), {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert any(hasattr(module, "_hf_hook") for module in placed.children())
    reports = [unlearn(model, method, **DATA, **options) for model in (plain, placed)]
    assert reports[0].changed == reports[1].changed > 0
    assert digest(plain) == digest(placed)
    assert torch.equal(plain(INPUT), placed(INPUT))
    assert placed.hf_device_map == {"": "cpu"}


def offloaded(how, folder):
    model = net()
    if how == "all":
        return accelerate.cpu_offload(model, execution_device="cpu")
    if how == "disk":
        return accelerate.disk_offload(model, str(folder), execution_device="cpu")
    places = {"0": "cpu", "1": "cpu", "2": "disk"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("how", ["all", "disk", "a part"])
def test_offloaded_weights_are_refused_before_anything_changes(how, method, options, tmp_path):
    model = offloaded(how, tmp_path)
    before, modes = model(INPUT), [m.training for m in model.modules()]
    match = r"2\.(weight|bias).*on the meta device \(load them; accelerate must not offload"
    with pytest.raises(UnsupportedModelError, match=match):
        unlearn(model, method, **copy.deepcopy(DATA), **options)
    assert torch.equal(model(INPUT), before)
    assert [m.training for m in model.modules()] == modes
