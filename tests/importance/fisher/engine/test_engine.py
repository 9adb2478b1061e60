"""Invariances of the totals, refusals of the engine, and state that it leaves unchanged."""

import threading
import warnings

import pytest
import torch
from fisher_oracle import SumOfSquares, distance, engine_only, estimate, oracle
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from unlearnkit import CrossEntropy, DiagonalFisher, NonFiniteError, Objective, UnsupportedModelError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, groups=6),
        nn.GroupNorm(2, 6), nn.Conv2d(6, 4, 1), nn.Flatten(1), nn.Linear(4 * 16, 5),
    ).eval()  # fmt: skip


def data(n=12, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(n, 3, 6, 6, dtype=dtype), torch.randint(0, 5, (n,))


def batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


LIMITS = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("size", [1, 2, 5, 7, 12])
def test_batch_size_does_not_matter(size, dtype):
    model, (x, y) = network().to(dtype), data(dtype=dtype)
    expected = estimate(model, [(x, y)])
    seen = estimate(model, batches(x, y, size))
    assert distance(seen, {n: t.double() for n, t in expected.items()}) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 5}, {"memory_budget": 1}, {"accumulate": "float64"}])
def test_options_do_not_matter(options, dtype):
    model, (x, y) = network().to(dtype), data(dtype=dtype)
    expected = {n: t.double() for n, t in estimate(model, [(x, y)]).items()}
    assert distance(estimate(model, [(x, y)], **options), expected) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
def test_order_memory_format_and_threads_do_not_matter(dtype):
    model, (x, y) = network().to(dtype), data(dtype=dtype)
    expected = {n: t.double() for n, t in estimate(model, batches(x, y, 4)).items()}
    assert distance(estimate(model, batches(x.flip(0), y.flip(0), 4)), expected) < LIMITS[dtype]
    last = x.contiguous(memory_format=torch.channels_last)
    assert distance(estimate(model, [(last, y)]), expected) < LIMITS[dtype]
    torch.set_num_threads(2)
    try:
        assert distance(estimate(model, [(x, y)]), expected) < LIMITS[dtype]
    finally:
        torch.set_num_threads(1)
    model.to(memory_format=torch.channels_last)
    assert distance(estimate(model, [(last, y)]), expected) < LIMITS[dtype]


def test_the_same_bits_twice():
    model, (x, y) = network(), data()
    one, two = estimate(model, [(x, y)]), estimate(model, [(x, y)])
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_a_loss_times_c_gives_c_squared():
    class Scaled(Objective):
        def losses(self, model, batch):
            return 4.0 * CrossEntropy().losses(model, batch)

    model, (x, y) = network(), data()
    expected = {n: 16 * t.double() for n, t in estimate(model, [(x, y)]).items()}
    assert distance(estimate(model, [(x, y)], Scaled()), expected) < 1e-6


def test_float64_totals_on_request():
    assert {t.dtype for t in estimate(network(), [data()], accumulate="float64").values()} == {torch.float64}


def test_float64_keeps_squares_that_float32_loses():
    class Tiny(Objective):
        def losses(self, model, batch):
            return 1e-22 * SumOfSquares().losses(model, batch)

    model = nn.Linear(2, 2)
    batch = (torch.randn(3, 2), torch.randn(3))
    assert float(estimate(model, [batch], Tiny(), accumulate="float64")["weight"].sum()) > 0


def test_shapes_may_change_between_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(6, 5)).eval()
    y = torch.randint(0, 5, (4,))
    engine_only(model, [(torch.randn(4, 2, length), y) for length in (5, 9, 5)])


def test_model_and_dispatch_modes_are_restored():
    model = network()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    estimate(model, [data()])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert float(model[0].weight.grad.sum()) == model[0].weight.numel()
    assert model[3].weight.grad is None
    assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("when", ["forward", "loss"])
def test_exception_leaves_no_hooks_or_gradients(when):
    class Failing(Objective):
        def losses(self, model, batch):
            if when == "forward":
                raise KeyError("mine")
            return CrossEntropy().losses(model, batch).mean()

    with pytest.raises(Exception, match=r"mine|one loss per sample"):
        estimate(network(), [data()], Failing())
    assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1, 3])
def test_non_finite_gradient_names_parameter_and_batch(bad, where):
    model, (x, y) = network(), data(16)
    parts = batches(x, y, 4)
    parts[where][0][2, 0, 0, 0] = bad
    with pytest.raises(NonFiniteError, match=rf"in batch {where} .*7\.weight"):
        estimate(model, parts)


def test_non_finite_gradient_in_a_large_layer_names_its_batch():
    class Steep(Objective):
        def losses(self, model, batch):
            return SumOfSquares().losses(model, batch) * (1e25 if float(batch[0].max()) > 10 else 1.0)

    torch.manual_seed(0)
    model = nn.Linear(300, 300, bias=False)
    parts = [(torch.randn(2, 300), torch.randn(2)) for _ in range(4)]
    parts[2] = (parts[2][0] + 20, parts[2][1])
    with pytest.raises(NonFiniteError, match=r"in batch 2 .*weight"):
        estimate(model, parts, Steep())


def test_batch_statistics_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(108, track_running_stats=False), nn.Linear(108, 5))
    with pytest.raises(UnsupportedModelError, match="samples that do not mix"):
        estimate(model, [data()])

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(108, 5)
            self.g = nn.Parameter(torch.ones(108))

        def forward(self, x):
            return self.f(nn.functional.batch_norm(x.flatten(1), None, None, self.g, training=True))

    with pytest.raises(UnsupportedModelError, match="batch statistics"):
        estimate(Functional(), [data()])


def test_concurrent_estimates_do_not_interfere():
    models = [network() for _ in range(2)]
    inputs = [data(12), (data(24)[0][12:], data(24)[1][12:])]
    found, failures = {}, []

    def work(i):
        try:
            for _ in range(3):
                found[i] = estimate(models[i], batches(*inputs[i], 5))
        except Exception as error:  # noqa: BLE001 - a thread cannot raise into the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    for i in range(2):
        assert distance(found[i], oracle(models[i], [inputs[i]])) < 1e-4


def test_no_tensor_of_size_batch_times_parameters_is_created():
    """The largest tensor of the pass is far smaller than all per-sample gradients."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.seen = max(self.seen, result.untyped_storage().nbytes())
            return result

    model, x = nn.Sequential(nn.Linear(256, 256), nn.Flatten(), nn.Linear(256 * 4, 5)), torch.randn(64, 4, 256)
    batch = (x, torch.randint(0, 5, (64,)))
    DiagonalFisher().estimate(model, [batch], objective=CrossEntropy())
    run = DiagonalFisher().accumulator(model, objective=CrossEntropy())
    run.add(batch)
    with Largest() as largest:
        run.add(batch)
    assert largest.seen < 64 * 256 * 256 * 4 / 8


def test_one_batch_by_itself():
    importance = DiagonalFisher().estimate_batch(network(), data(), objective=CrossEntropy())
    assert importance.count == 12


def test_no_warning_on_ordinary_models():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate(network(), [data()])
