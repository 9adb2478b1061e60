"""The peak of memory."""

import builtins
import resource

import pytest
import torch

from unlearnkit.utils.memory import peak_memory

CPU = torch.device("cpu")


def test_peak_rises_and_does_not_fall():
    before = peak_memory(CPU).host
    held = torch.ones(64 * 2**20)  # 256 MiB
    during = peak_memory(CPU).host
    del held
    assert during - before < 2**31
    assert during >= 256 * 2**20
    assert peak_memory(CPU).host >= during
    assert peak_memory(CPU).cuda is None


def test_units(monkeypatch):
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr("sys.platform", "darwin")  # which counts in bytes
    assert kibibytes <= peak_memory(CPU).host < 2 * kibibytes


def test_unknown_memory_is_handled(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "resource":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert peak_memory(CPU).host is None


@pytest.mark.gpu
def test_cuda():
    device = torch.device("cuda")
    held = torch.ones(2**20, device=device)
    assert peak_memory(device).cuda >= held.numel() * 4
