"""The kernels as a plugin: the engine with them, without them, and with one that fails."""

import os
import subprocess
import sys

import pytest
import torch
from compiler import HAS_COMPILER
from fisher_oracle import distance, estimate, oracle
from torch import nn

from unlearnkit import ConfigurationError, DiagonalFisher, PluginManager, PluginWarning, UnlearnKitWarning, hookimpl
from unlearnkit.importance import Kernel, KernelPlan
from unlearnkit.importance.fisher.engine import kernel as contract
from unlearnkit.utils import kernel_source

PROGRAM = """
import subprocess, sys, torch, unlearnkit as uk
def never(*args, **kwargs):
    raise AssertionError("a process was started")
subprocess.Popen = never
model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Flatten(), torch.nn.Linear(64, 3))
data = [(torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 2, 0]))]
uk.DiagonalFisher().estimate(model, data, objective=uk.CrossEntropy())
assert "unlearnkit_cpu_kernels" not in sys.modules, "the plugin was imported"
try:
    uk.DiagonalFisher(kernels="compiled").estimate(model, data, objective=uk.CrossEntropy())
except uk.ConfigurationError as error:
    print(error)
"""


def test_without_the_plugin_the_engine_uses_only_torch(tmp_path):
    """No compiler is started, the plugin is not imported, and `kernels="compiled"` is an error."""
    outside = {**os.environ, "UNLEARNKIT_DISABLE_PLUGINS": "cpu-kernels", "UNLEARNKIT_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "expected a plugin that offers kernels, saw none" in done.stdout
    assert not list(tmp_path.iterdir())


def test_removed_option_value_lists_the_valid_ones():
    with pytest.raises(ConfigurationError, match="expected one of 'auto', 'fixed', 'compiled', saw 'timed'"):
        DiagonalFisher(kernels="timed")


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
def test_a_plain_estimate_uses_the_plugin_that_is_installed():
    names = [kernel.name for kernel, _ in PluginManager().kernels()]
    assert names == ["cpu-linear", "cpu-convolution"]
    model, data = network(), batches(4)
    auto, fixed = estimate(model, data), estimate(model, data, kernels="fixed")
    assert any(not torch.equal(auto[name], total) for name, total in fixed.items())
    assert distance(auto, oracle(network(), data)) < 1e-5


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 20), nn.Flatten(), nn.Linear(100, 3)).eval()


def batches(count):
    torch.manual_seed(1)
    return [(torch.randn(5, 5, 6), torch.tensor([0, 1, 2, 0, 1])) for _ in range(count)]


class Sometimes(Kernel):
    """Correct, but raises in its n-th run after adding half of the sum."""

    name = "sometimes"
    layer = "linear"

    def __init__(self, fails_in, *, error=None, planning=False):
        self.fails_in, self.error, self.planning, self.runs = fails_in, error or ValueError("broken"), planning, 0

    def plan(self, operands):
        if self.planning:
            raise self.error
        per_sample = torch.einsum("nko,nki->noi", operands.g, operands.x)

        def run(sums):
            self.runs += 1
            if self.runs == self.fails_in:
                sums.add(per_sample[:1])
                raise self.error
            sums.add(per_sample)

        return KernelPlan(name="plain", shape=tuple(per_sample.shape[1:]), run=run)


@pytest.fixture
def offer(monkeypatch):
    """Offer one kernel to the engine; afterwards clear the record of failed kernels."""
    monkeypatch.setattr(contract, "_left_out", {})
    monkeypatch.setattr(contract, "_said", set())

    def use(*kernels):
        monkeypatch.setattr(
            kernel_source, "_sources", [lambda: [(kernel, "plugin 'x' of x 1.0") for kernel in kernels]]
        )
        kernel_source.plugin_kernels.cache_clear()
        return kernels[0]

    yield use
    monkeypatch.undo()
    kernel_source.plugin_kernels.cache_clear()


def test_correct_kernel_is_used(offer):
    kernel = offer(Sometimes(0))
    assert distance(estimate(network(), batches(3)), oracle(network(), batches(3))) < 1e-5
    assert kernel.runs > 6


@pytest.mark.parametrize("fails_in", [1, 2, 3, 4])
def test_failing_kernel_is_skipped_with_one_warning(offer, fails_in):
    """In the probe, and in the first batch, whose sums are rolled back."""
    kernel = offer(Sometimes(fails_in))
    with pytest.warns(UnlearnKitWarning, match=r"the kernel sometimes \(plugin 'x' of x 1\.0\): broken") as said:
        seen = estimate(network(), batches(3))
    assert len(said) == 1
    assert distance(seen, oracle(network(), batches(3))) < 1e-5
    assert kernel.runs == fails_in
    estimate(network(), batches(1))  # without another word


def test_kernel_that_fails_after_successful_batches_is_an_error(offer):
    offer(Sometimes(11))
    with pytest.warns(UnlearnKitWarning, match="broken"), pytest.raises(Exception, match="so that the totals are lost"):
        estimate(network(), batches(9))


def test_kernel_that_cannot_plan_is_skipped_and_compiled_raises(offer):
    offer(Sometimes(0, planning=True))
    with pytest.warns(UnlearnKitWarning, match="broken"):
        seen = estimate(network(), batches(2))
    assert distance(seen, oracle(network(), batches(2))) < 1e-5
    with pytest.raises(ConfigurationError, match=r"kernels='compiled': the kernel sometimes .* cannot be used: broken"):
        estimate(network(), batches(2), kernels="compiled")


def test_out_of_memory_in_a_kernel_halves_the_batch(offer):
    offer(Sometimes(4, error=torch.OutOfMemoryError("out of memory")))
    with pytest.warns(UnlearnKitWarning, match="out of memory with 5 samples"):
        seen = estimate(network(), batches(3))
    assert distance(seen, oracle(network(), batches(3))) < 1e-5


class Offers:
    @hookimpl
    def unlearnkit_register_kernels(self):
        return [Sometimes]


def test_plugin_that_returns_a_kernel_class_is_reported():
    manager = PluginManager(entry_points=False)
    manager.register(Offers(), name="wrong")
    with pytest.warns(PluginWarning, match="expected objects of subclasses of Kernel"):
        assert manager.kernels() == ()
    assert "registering its kernels" in str(manager.problems()[0])


def test_kernels_are_listed_with_the_plugins():
    from typer.testing import CliRunner

    from unlearnkit.cli.app import app

    shown = " ".join(CliRunner().invoke(app, ["plugins"]).output.split())
    assert "kernel cpu-linear for linear layers: plugin 'cpu-kernels' of unlearnkit" in shown
    assert "kernel cpu-convolution for convolution layers" in shown


class Twice:
    @hookimpl
    def unlearnkit_register_kernels(self):
        return [Sometimes(0)]


def test_kernels_of_a_registered_plugin_are_the_same_objects_each_time():
    manager = PluginManager(entry_points=False)
    manager.register(Twice(), name="twice")
    ((one, origin),) = manager.kernels()
    assert origin.startswith("plugin 'twice' of ")
    assert manager.kernels() == ((one, origin),)


def test_kernels_are_looked_up_once_and_again_after_a_plugin_is_registered(offer, monkeypatch):
    offer(Sometimes(0))  # the cache is cleared now, and after the test
    manager, looked_up = PluginManager(entry_points=False), []
    monkeypatch.setattr(kernel_source, "_sources", [lambda: looked_up.append(1) or manager.kernels()])
    assert kernel_source.plugin_kernels() == kernel_source.plugin_kernels() == ()
    assert len(looked_up) == 1
    manager.register(Twice(), name="twice")
    assert [kernel.name for kernel, _ in kernel_source.plugin_kernels()] == ["sometimes"]
