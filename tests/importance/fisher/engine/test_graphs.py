"""Passes that are recorded and replayed: on a CPU by a tape of torch's own operations, on CUDA by graphs."""

import attrs
import pytest
import torch
from fisher_models import Labelled, everything, mixed
from fisher_oracle import distance, oracle
from tape import Tape, TapeRecorder
from torch import nn
from torch.utils.checkpoint import checkpoint

from unlearnkit import (
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    NonFiniteError,
    Objective,
    UnlearnKitWarning,
    UnsupportedModelError,
    fisher_statistics,
)
from unlearnkit.data.batches import to_device
from unlearnkit.importance.fisher.diagonal import start
from unlearnkit.importance.fisher.engine import nan_check as finite
from unlearnkit.importance.fisher.engine.graphs import Graphs
from unlearnkit.models.objective import Autocast

pytestmark = [
    pytest.mark.filterwarnings("ignore:no rule for"),
    pytest.mark.usefixtures("exact_convolutions"),
]
FIXED = {"kernels": "fixed", "graphs": True}  # our own compiled kernel is not an operation of torch's


@pytest.fixture(autouse=True)
def late_looks(monkeypatch):
    monkeypatch.setattr(finite, "on_device", lambda _: True)


def replayed(model, data, objective=None, recorder=None, **options):
    recorder = recorder or TapeRecorder()
    run = start(
        DiagonalFisher(**FIXED, **options), model.eval(), objective=objective or CrossEntropy(), recorder=recorder
    )
    for batch in data:
        run.add(batch)
    return run.result(), recorder


def network(dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5)]
    return nn.Sequential(*layers).eval().to(dtype)


def pictures(*sizes, dtype=torch.float64):
    torch.manual_seed(1)
    return [(torch.randn(n, 3, 6, 6, dtype=dtype), torch.randint(0, 5, (n,))) for n in sizes]


class Recurrent(nn.Module):
    """A layer whose weights are used many times, and a tied one."""

    def __init__(self):
        super().__init__()
        self.cell, self.one = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 4)
        self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 5)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.head(self.two(self.one(self.cell(x)[0][:, -1]).tanh()))


def test_every_family_replays_to_the_same_totals():
    model, data = everything(), mixed(6, 6, 6, 6, 6)
    seen, recorder = replayed(model, data, Labelled())
    assert (recorder.warmed, recorder.replays) == (1, 3)
    assert seen.count == 30
    assert distance(seen.totals, oracle(model, data, Labelled())) < 1e-10
    eager = DiagonalFisher(kernels="fixed").estimate(model, data, objective=Labelled())
    assert distance(seen.totals, eager.totals) < 1e-12


@pytest.mark.parametrize("options", [{}, {"chunk": 3}, {"accumulate": "float64"}, {"memory_budget": 1}])
def test_recurrent_and_tied_weights_and_options(options):
    torch.manual_seed(0)
    model = Recurrent()
    data = [(torch.randn(6, 5, 4), torch.randint(0, 5, (6,))) for _ in range(5)]
    seen, recorder = replayed(model, data, **options)
    assert recorder.replays == (8 if "chunk" in options else 3)
    assert distance(seen.totals, oracle(model, data)) < 1e-5


def attention():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Flatten(), nn.Linear(20, 5))


class Checkpointed(nn.Module):
    """Throws activations away, and makes them again on the way back."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Sequential(nn.Flatten(), nn.Linear(20, 8), nn.Tanh()), nn.Linear(8, 5)

    def forward(self, x):
        return self.two(checkpoint(self.one, x, use_reentrant=False, preserve_rng_state=False))


@pytest.mark.parametrize("objective", [CrossEntropy(), Autocast()])
@pytest.mark.parametrize("make", [Recurrent, attention, Checkpointed])
def test_bfloat16_attention_and_checkpoints_replay_as_passes_do(make, objective):
    torch.manual_seed(0)
    model = make().eval()
    data = [(torch.randn(6, 5, 4), torch.randint(0, 5, (6,))) for _ in range(5)]
    seen, recorder = replayed(model, data, objective)
    plain = DiagonalFisher(kernels="fixed").estimate(model, data, objective=objective)
    assert recorder.replays == 3
    assert distance(seen.totals, {n: t.double() for n, t in plain.totals.items()}) < 1e-6


def test_batches_of_other_sizes_and_shapes_are_added_without_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)).double()
    data = pictures(6, 6, 6, 4, 6, 1, 6, 6, 2)
    data.insert(5, (torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.zeros(6, dtype=torch.long)))
    seen, recorder = replayed(model, data)
    assert recorder.replays == 4
    assert distance(seen.totals, oracle(model, data)) < 1e-10


@attrs.frozen
class Scaled(Objective):
    """A batch that holds a number which is no tensor."""

    def losses(self, model, batch):
        return CrossEntropy(targets=1).losses(model, batch) * batch[2]


def test_what_is_no_tensor_in_a_batch_is_no_other_than_in_the_recorded_one():
    model = network()
    data = [(x, y, scale) for (x, y), scale in zip(pictures(*[6] * 6), [1.0, 1.0, 1.0, 3.0, 1.0, 1.0], strict=True)]
    with pytest.warns(UnlearnKitWarning, match="beside tensors"):
        seen, recorder = replayed(model, data, Scaled())
    expected = {n: torch.zeros_like(t) for n, t in seen.totals.items()}
    for x, y, scale in data:
        for name, t in oracle(model, [(x, y)]).items():
            expected[name] += scale**2 * t
    assert recorder.replays == 3
    assert distance(seen.totals, expected) < 1e-10


def test_batches_that_all_hold_something_else_are_said_to_be_added_one_by_one():
    data = [(x, y, str(name)) for name, (x, y) in enumerate(pictures(*[6] * 5))]
    with pytest.warns(UnlearnKitWarning, match="beside tensors") as caught:
        seen, recorder = replayed(network(), data, CrossEntropy(targets=1))
    assert len(caught) == 1
    assert recorder.replays == 1
    assert distance(seen.totals, oracle(network(), [(x, y) for x, y, _ in data])) < 1e-10


class Reads(nn.Module):
    """A model that asks the device for a number."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return self.inner(x if float(x.sum()) < 1e9 else -x)


def test_a_model_that_reads_what_the_device_computes_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"this pass cannot be recorded .*_local_scalar_dense"):
        replayed(Reads(), pictures(6, 6, 6))


def test_what_is_looked_at_again_is_what_was_replayed():
    model = network()
    seen, recorder = replayed(model, pictures(*[6] * 5), recheck=1)
    assert recorder.replays == 3
    assert distance(seen.totals, oracle(model, pictures(*[6] * 5))) < 1e-10


class Changes(nn.Module):
    """Takes another branch from some pass on, which only Python knows: a replay cannot."""

    def __init__(self, after):
        super().__init__()
        self.inner, self.calls, self.after = network(), 0, after

    def forward(self, x):
        self.calls += 1
        return self.inner(x) * (1.0 if self.calls < self.after else 3.0)


def test_a_model_that_becomes_another_is_found_out_where_it_is_looked_at_again():
    with pytest.raises(UnsupportedModelError, match="the losses"):
        replayed(Changes(30), pictures(*[6] * 12), recheck=1)


def test_nan_is_found_at_the_end():
    data = pictures(*[6] * 5)
    data[3][0][2, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="in batch 3"):
        replayed(network(), data)


class Half(nn.Module):
    """A layer that no gradient reaches."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x):
        return (self.one(x) + self.two(x) * 0.0).sum(1)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 5)

    def forward(self, x):
        return self.f(x - x.mean(0)).sum(1)


@pytest.mark.parametrize(("model", "words"), [(Half(), "no gradient in the probe"), (Mixing(), "proven")])
def test_models_whose_passes_cannot_be_recorded_are_refused(model, words):
    torch.manual_seed(0)
    data = [(torch.randn(6, 3, 4), torch.randint(0, 5, (6,))) for _ in range(3)]
    with pytest.raises(UnsupportedModelError, match=words):
        replayed(model, data)


@pytest.mark.parametrize(
    ("words", "options"),
    [("Σ", {"absolute": True}), ("gradients", {"gradient": True}), ("groups", {"key": -1})],
)
def test_totals_alone(words, options, monkeypatch):
    monkeypatch.setattr("unlearnkit.importance.fisher.diagonal.recorder_on", lambda _: TapeRecorder())
    with pytest.raises(ConfigurationError, match=words):
        fisher_statistics(
            network(), pictures(4), objective=CrossEntropy(), fisher=DiagonalFisher(graphs=True), **options
        )


def test_not_compensated_and_not_on_a_cpu(monkeypatch):
    with pytest.raises(ConfigurationError, match="expected a model on a CUDA device, saw one on cpu"):
        DiagonalFisher(graphs=True).estimate(network(), pictures(4), objective=CrossEntropy())
    monkeypatch.setattr("unlearnkit.importance.fisher.diagonal.recorder_on", lambda _: TapeRecorder())
    with pytest.raises(ConfigurationError, match="compensated"):
        DiagonalFisher(graphs=True, accumulate="compensated").estimate(network(), pictures(4), objective=CrossEntropy())


def test_totals_that_moved_are_not_added_to():
    places = {"w": 1}
    graphs = Graphs(TapeRecorder(), lambda: places)
    for _ in range(3):
        graphs.run("key", (torch.ones(2),), lambda batch: batch[0] + 1)
    places["w"] = 2
    with pytest.raises(RuntimeError, match="saw them elsewhere"):
        graphs.run("key", (torch.ones(2),), lambda batch: batch[0] + 1)


def test_a_pass_that_adds_in_a_new_place_is_refused():
    places = {"w": 1}

    def work(batch):
        places[len(places)] = 1
        return batch[0] + 1

    graphs = Graphs(TapeRecorder(), lambda: places)
    graphs.run("key", (torch.ones(2),), work)
    with pytest.raises(UnsupportedModelError, match="other places"):
        graphs.run("key", (torch.ones(2),), work)


def test_it_is_recorded_in_nothing():
    data, model = pictures(4), network()
    objective = CrossEntropy()
    assert "graphs" not in DiagonalFisher().estimate(model, data, objective=objective).fingerprint.options


def test_the_tape_is_a_graph():
    """It reads the memory that it read when it was recorded, writes where it wrote, and does nothing before."""
    x, total, tape = torch.ones(3), torch.zeros(3), Tape()
    factor = 2.0
    with tape:
        y = x * factor
        total.add_(y.view(3, 1)[:, 0].clone().square_())
    tape.undo()
    assert total.tolist() == [0, 0, 0]
    x.copy_(torch.tensor([1.0, 2.0, 3.0]))
    factor = 5.0
    tape.replay()
    tape.replay()
    assert total.tolist() == [8, 32, 72]
    assert y.tolist() == [2, 4, 6]


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"chunk": 3}, {"kernels": "timed"}])
def test_on_a_gpu_a_graph_adds_what_passes_add(options):
    device, data = torch.device("cuda"), pictures(6, 6, 6, 4, 6, 6, dtype=torch.float32)
    model = network(torch.float32).to(device)
    plain = DiagonalFisher(kernels="fixed").estimate(model, data, objective=CrossEntropy())
    seen = DiagonalFisher(graphs=True, **options).estimate(model, data, objective=CrossEntropy())
    assert seen.count == plain.count
    expected = {n: t.cpu().double() for n, t in plain.totals.items()}
    assert distance({n: t.cpu() for n, t in seen.totals.items()}, expected) < 1e-6
    assert seen.fingerprint == plain.fingerprint


@pytest.mark.gpu
def test_on_a_gpu_all_families_are_replayed_and_nothing_waits():
    device = torch.device("cuda")
    model, data = everything(torch.float32), mixed(6, 6, 6, 6, 6, 6, dtype=torch.float32)
    expected = oracle(model, data, Labelled())
    run = DiagonalFisher(graphs=True).accumulator(model.to(device).eval(), objective=Labelled())
    moved = [to_device(batch, device) for batch in data]
    for batch in moved[:3]:
        run.add(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in moved[3:]:
            run.add(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert distance({n: t.cpu() for n, t in run.result().totals.items()}, expected) < 1e-3


@pytest.mark.gpu
def test_on_a_gpu_a_model_that_reads_is_refused_and_the_device_still_works():
    device = torch.device("cuda")
    model = Reads().float().to(device)
    with pytest.raises(UnsupportedModelError, match="cannot be recorded"):
        DiagonalFisher(graphs=True).estimate(model, pictures(6, 6, 6, 6, dtype=torch.float32), objective=CrossEntropy())
    assert float(torch.ones(2, device=device).sum()) == 2.0
