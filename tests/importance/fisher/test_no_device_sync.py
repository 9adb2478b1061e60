"""Operations that would synchronise with a CUDA device in every batch, detected on the CPU."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from device_sync import Reads, Waits, on_fake_cuda
from fisher_models import Labelled, everything, mixed
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from unlearnkit import BatchedDiagonalFisher, CrossEntropy, DiagonalFisher, NonFiniteError, SketchedFisher
from unlearnkit.data import DeviceTransform
from unlearnkit.data.batches import Deferred, feed
from unlearnkit.importance import fisher_statistics
from unlearnkit.importance.fisher.batched import InOrder
from unlearnkit.importance.fisher.diagonal import start
from unlearnkit.importance.fisher.engine import accumulate as collect
from unlearnkit.importance.fisher.engine import nan_check as finite
from unlearnkit.importance.fisher.engine.fallback_rules import Rerun
from unlearnkit.importance.fisher.engine.rule import Call
from unlearnkit.importance.fisher.engine.totals import Totals
from unlearnkit.importance.fisher.rules.normalisation import BatchNormRule
from unlearnkit.models.objective import Autocast

pytestmark = pytest.mark.filterwarnings("ignore:no rule for")
SENT = ["lift_fresh"]  # the order of the samples: pinned, and copied asynchronously


@pytest.fixture(autouse=True)
def late_looks(monkeypatch):
    """Checks for NaN are collected, as on a CUDA device, and read at the end."""
    monkeypatch.setattr(finite, "on_device", lambda _: True)


def watched(run, batch):
    """Add a batch, and return the operations that would have synchronised."""
    with Reads() as reads, Waits() as waits:
        run.add(batch)
    return reads.seen + waits.seen


@pytest.mark.parametrize("extras", [{}, {"absolute": True, "gradient": True}])
@pytest.mark.parametrize("keys", [(), [0, 1, 0, 2, 1, 0]])
def test_repeated_batch_shape_causes_no_sync(extras, keys):
    """All families, groups and extras."""
    groups = (lambda: keys) if keys else None
    run = start(DiagonalFisher(), everything(), objective=Labelled(), keys=groups, **extras)
    first, second = mixed(6, 6)
    run.add(first)
    assert watched(run, second) == (SENT if keys else [])
    assert run.result().count == 12


class Sequences(nn.Module):
    """Recurrent layers, whose weights are used at every step."""

    def __init__(self):
        super().__init__()
        self.cell, self.other, self.head = nn.LSTM(4, 3, 2, bidirectional=True), nn.GRUCell(6, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.other(self.cell(x.transpose(0, 1))[0].mean(0)))


def sequences(*sizes):
    torch.manual_seed(0)
    return [(torch.randn(n, 5, 4), torch.randint(0, 3, (n,))) for n in sizes]


@pytest.mark.parametrize("options", [{}, {"accumulate": "compensated"}, {"accumulate": "float64"}, {"chunk": 2}])
def test_recurrent_layers_and_accumulation_options_cause_no_sync(options):
    groups = iter([[0, 0, 1, 1, 1, 2], [0, 1, 0, 2, 1, 2]])
    run = start(DiagonalFisher(**options), Sequences(), objective=CrossEntropy(), keys=lambda: next(groups))
    first, second = sequences(6, 6)
    run.add(first)
    assert watched(run, second) == SENT


@pytest.mark.parametrize("estimator", [DiagonalFisher(), SketchedFisher()])
@pytest.mark.parametrize("objective", [CrossEntropy(), Autocast()])
def test_bfloat16_and_the_sketch_cause_no_sync(estimator, objective):
    if isinstance(objective, Autocast):
        try:
            objective.losses(Sequences(), sequences(2)[0])
        except RuntimeError as error:
            pytest.skip(f"torch has no bfloat16 LSTM on this CPU: {error}")
    run = estimator.accumulator(Sequences().eval(), objective=objective)
    first, second = sequences(6, 6)
    run.add(first)
    assert watched(run, second) == []


@pytest.mark.parametrize("options", [{}, {"weights": "equal", "reduction": "sum"}])
def test_batch_squares_cause_no_sync_and_are_the_same(options):
    fisher, model, data = BatchedDiagonalFisher(**options), Sequences().eval(), sequences(6, 6, 3)
    run = InOrder(partial(fisher.estimate_batch, model, objective=CrossEntropy()))
    run.add(data[0])
    assert watched(run, data[1]) == []
    run.add(data[2])
    seen, expected = run.result(), fisher.estimate(model, data, objective=CrossEntropy())
    assert seen.count == expected.count
    for name, total in expected.totals.items():
        torch.testing.assert_close(seen.totals[name], total)


def test_nan_is_detected_at_the_end():
    model, data = Sequences().eval(), sequences(6, 6, 6)
    data[1][0][2, 1, 0] = float("nan")
    run = InOrder(partial(BatchedDiagonalFisher().estimate_batch, model, objective=CrossEntropy()))
    for batch in data:
        run.add(batch)
    with pytest.raises(NonFiniteError, match="in batch 1 "):
        run.result()


class FromTheSecond:
    """A progress bar that records operations from the second batch on, the loop included."""

    def __init__(self):
        self.reads, self.waits = Reads(), Waits()

    def __call__(self, items, *_):
        with ExitStack() as stack:
            for number, item in enumerate(items):
                if number == 1:
                    stack.enter_context(self.reads)
                    stack.enter_context(self.waits)
                yield item

    @property
    def seen(self):
        return self.reads.seen + self.waits.seen


def test_estimate_loop_causes_no_sync(monkeypatch):
    monkeypatch.setattr("unlearnkit.importance.provenance.digest", lambda _: b"")  # reads batches where they were
    around = FromTheSecond()
    DiagonalFisher().estimate(everything(), mixed(6, 6, 6), objective=Labelled(), progress=around)
    assert around.seen == []
    around, keys = FromTheSecond(), lambda _: [0, 1, 0, 1, 2, 2]
    fisher_statistics(everything(), mixed(6, 6, 6), objective=Labelled(), key=keys, progress=around)
    assert around.seen == SENT * 2


def test_device_transform_causes_no_sync():
    finish = DeviceTransform(image_size=8)
    first, *rest = (Deferred(raw=torch.randint(256, (4, 3, 6, 6), dtype=torch.uint8), finish=finish) for _ in range(3))
    list(feed([first], torch.device("cpu")))
    with Reads() as reads, Waits() as waits:
        list(feed(rest, torch.device("cpu")))
    assert reads.seen + waits.seen == []


@pytest.mark.parametrize("fetch", [everything, Sequences])
@pytest.mark.parametrize("budget", [1, 1 << 26])
def test_no_rule_synchronises_on_fake_cuda_tensors(fetch, budget, monkeypatch):
    """Each rule runs again on fake CUDA tensors, whose values nothing can read."""
    uses, ordinary = [], collect._hand_on

    def hand_on(use, part):
        uses.append(use)
        ordinary(use, part)

    model = fetch().eval()
    run = start(DiagonalFisher(), model, objective=Labelled() if fetch is everything else CrossEntropy())
    first, second = mixed(6, 6) if fetch is everything else sequences(6, 6)
    run.add(first)
    monkeypatch.setattr(collect, "_hand_on", hand_on)
    run.add(second)
    mode = FakeTensorMode()
    with torch.no_grad():
        for use in uses:
            if isinstance(use.rule, Rerun):  # torch cannot go back through CUDA tensors where there is no device
                continue
            g, call = on_fake_cuda(use.g, mode), on_fake_cuda(use.call, mode)
            named = on_fake_cuda(dict(model.named_parameters()), mode)
            slot = Totals(named, double=False, memory=budget).slot(use.label)
            with mode, Waits() as waits:
                use.rule.add_squares(use.role, g, call, slot)
            assert waits.seen == [], use.label
    assert len(uses) > len(named) / 2


def test_number_of_operations_of_a_norm_does_not_depend_on_samples_on_a_device():
    mode = FakeTensorMode()
    with mode, torch.no_grad(), Waits() as waits:
        x, w = torch.empty(256, 1, 64, 56, 56, device="cuda"), torch.empty(64, device="cuda")
        call = Call(weights={"weight": w}, saved=(x,), options=(w, w, 1e-5))
        slot = Totals({"w": w}, double=False, memory=64 << 20).slot("w")
        BatchNormRule().add_squares("weight", x, call, slot)
    assert waits.count < 200


def test_sync_operations_are_detected():
    with Reads() as reads, Waits() as waits:
        bool(torch.ones(1).any())
        torch.unique(torch.ones(3))
        torch.tensor([1.0])
        torch.ones(3)[torch.ones(3) > 0]
        torch.ones(2).tolist()
    assert reads.seen == ["__bool__", "tolist"]
    assert waits.seen == ["_local_scalar_dense", "_unique2", "lift_fresh", "index"]
    mode = FakeTensorMode()
    with mode, Waits() as waits:
        torch.ones(2).to("cuda")
        torch.ones(2, device="cuda") + 1.0
    assert waits.seen == ["_to_copy"]
