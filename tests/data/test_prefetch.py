"""Prefetching: from a data loader to a forward pass."""

import ast
from pathlib import Path

import pytest
import torch

import unlearnkit
from unlearnkit.data.batches import Deferred, copy_to, feed, fetch_ahead, limit_queue

CPU = torch.device("cpu")


def test_on_a_cpu_nothing_is_copied_and_nothing_fetched_early():
    log = []

    def source():
        for i in range(3):
            log.append(f"fetch {i}")
            yield torch.tensor([i])

    for raw, moved in feed(source(), CPU):
        assert moved is raw
        log.append(f"use {moved.item()}")
    assert log == ["fetch 0", "use 0", "fetch 1", "use 1", "fetch 2", "use 2"]


def test_deferred_batch_has_raw_and_transformed_tensors():
    batch = (Deferred(raw=torch.ones(2), finish=torch.neg), torch.tensor([0, 1]))
    ((raw, moved),) = feed([batch], CPU)
    assert raw is batch
    assert moved[0].tolist() == [-1.0, -1.0]


def test_fetch_ahead_keeps_order_and_fetches_the_next_before_the_last_is_used():
    log = []

    def source():
        for i in range(3):
            log.append(f"fetch {i}")
            yield i

    for i in fetch_ahead(source()):
        log.append(f"use {i}")
    assert log == ["fetch 0", "fetch 1", "use 0", "fetch 2", "use 1", "use 2"]
    assert list(fetch_ahead([])) == []


def test_host_waits_when_it_is_two_batches_ahead_of_the_device():
    log = []

    class Mark:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            log.append(f"wait for {self.number}")

    worked = []
    for i in limit_queue(range(5), lambda: Mark(worked[-1]), queued=2):
        worked.append(i)
        log.append(f"use {i}")
    assert log == ["use 0", "use 1", "use 2", "wait for 0", "use 3", "wait for 1", "use 4", "wait for 2"]


def test_a_copy_to_a_cpu_is_not_pinned():
    tensor = torch.arange(3)
    assert copy_to(tensor, CPU) is tensor


def test_batches_are_moved_to_a_device_only_here():
    root = Path(unlearnkit.__file__).parent
    movers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "to_device"
    }
    assert movers == {"data/batches.py"}


@pytest.mark.gpu
def test_on_a_gpu_the_batches_are_the_same_and_in_order():
    device = torch.device("cuda")
    source = [(torch.full((1 << 20,), float(i)), torch.tensor([i])) for i in range(8)]
    seen = []
    for raw, (x, y) in feed(source, device):
        assert x.device.type == y.device.type == "cuda"
        assert raw[0].device.type == "cpu"
        seen.append((x.sum() / x.numel(), y))
    assert [(float(x), int(y)) for x, y in seen] == [(float(i), i) for i in range(8)]


@pytest.mark.gpu
def test_on_a_gpu_fetching_batches_causes_no_sync():
    from unlearnkit.data import DeviceTransform

    device, finish = torch.device("cuda"), DeviceTransform(image_size=64)
    images = [torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8) for _ in range(6)]
    finish(images[0].to(device))
    torch.cuda.set_sync_debug_mode("error")
    try:
        seen = [
            x.sum() for _, (x, _) in feed([(Deferred(raw=i, finish=finish), torch.zeros(8)) for i in images], device)
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = [finish(i).double().sum() for i in images]
    assert [float(x) for x in seen] == pytest.approx([float(x) for x in expected], rel=1e-3, abs=1.0)


@pytest.mark.gpu
def test_on_a_gpu_transforms_wait_for_batches_of_another_stream():
    """Batches on the device that are still being computed on another stream."""
    device = torch.device("cuda")

    def source():
        for i in range(20):
            a = torch.randn(2048, 2048, device=device)
            for _ in range(10):
                a = a @ a / 2048
            yield (Deferred(raw=a.mul(0).add(i), finish=torch.neg),)

    assert [float(x.mean()) for _, (x,) in feed(source(), device)] == [-float(i) for i in range(20)]


@pytest.mark.gpu
def test_on_a_gpu_images_are_transformed_on_the_device():
    batch = (Deferred(raw=torch.ones(4, dtype=torch.uint8), finish=lambda t: t.float() / 2), torch.zeros(4))
    ((_, (x, _)),) = feed([batch], torch.device("cuda"))
    assert x.is_cuda
    assert x.tolist() == [0.5] * 4
