"""A download that stalls says what it waits for, and ends."""

import socket
import warnings

import pytest
import torch
from torchvision.datasets import CIFAR100
from torchvision.models import ResNet18_Weights

from unlearnkit.data import cifar100
from unlearnkit.models import resnet18_classifier
from unlearnkit.utils import download
from unlearnkit.utils.download import downloading
from unlearnkit.utils.errors import StoreError, UnlearnKitWarning


@pytest.fixture
def stalled(monkeypatch):
    """The address of a server that takes connections and never answers."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "_PATIENCE", 0.05)
    monkeypatch.setattr(download, "_SILENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/archive.tar.gz"


def test_cifar_100(stalled, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR100, "url", stalled)
    (tmp_path / "fresh").mkdir()
    with (
        pytest.warns(UnlearnKitWarning, match=rf"still waiting for CIFAR-100 \(169 MB\) from {stalled}"),
        pytest.raises(
            StoreError, match=rf"cannot get CIFAR-100 \(169 MB\) from {stalled}: .*timed out: check the network"
        ),
    ):
        cifar100(tmp_path / "fresh", download=True)


def test_pretrained_weights(stalled, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", stalled)
    with (
        pytest.warns(UnlearnKitWarning, match=rf"still waiting for ImageNet weights \(45 MB\) from {stalled}"),
        pytest.raises(StoreError, match=rf"cannot get ImageNet weights \(45 MB\) from {stalled}: .*timed out"),
    ):
        resnet18_classifier(num_classes=2, pretrained=True)


def test_a_quick_block_says_nothing_and_the_timeout_is_put_back():
    before = socket.getdefaulttimeout()
    with warnings.catch_warnings(), downloading("x", "url"):
        warnings.simplefilter("error")
        assert socket.getdefaulttimeout() == 60
    assert socket.getdefaulttimeout() == before


def test_a_timeout_that_was_set_stays():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(7)
    try:
        with downloading("x", "url"):
            assert socket.getdefaulttimeout() == 7
        assert socket.getdefaulttimeout() == 7
    finally:
        socket.setdefaulttimeout(before)
