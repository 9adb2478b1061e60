"""Recurrent layers and cells, written out in steps; functions with several results, one sample at a time."""

import copy

import pytest
import torch
from fisher_oracle import SumOfSquares, distance, engine_only, estimate, oracle
from torch import nn
from torch.utils.checkpoint import checkpoint

from unlearnkit import UnlearnKitWarning
from unlearnkit.importance import fisher_statistics
from unlearnkit.importance.fisher.engine import recurrent_cells as written_out
from unlearnkit.importance.fisher.engine.recurrent_cells import hindrance
from unlearnkit.models import Autocast

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def data(*sizes, time=7, width=6):
    torch.manual_seed(1)
    return [(torch.randn(n, time, width), torch.randint(0, 5, (n,))) for n in sizes]


class Uses(nn.Module):
    """A model whose forward is given."""

    def __init__(self, forward, out=4, **modules):
        super().__init__()
        self.head = nn.Linear(out, 5)
        for name, module in modules.items():
            setattr(self, name, module)
        self._forward = forward

    def forward(self, x):
        return self.head(self._forward(self, x))


def after_all(m, x):
    y = m.cell(x if m.cell.batch_first else x.transpose(0, 1))[0]
    return y[:, -1] if m.cell.batch_first else y[-1]


OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "three layers": {"num_layers": 3, "dropout": 0.5},
    "both ways": {"num_layers": 2, "bidirectional": True},
    "time first": {"batch_first": False},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind, options):
    torch.manual_seed(0)
    options = {"batch_first": True} | OPTIONS[options]
    model = Uses(after_all, 8 if options.get("bidirectional") else 4, cell=KINDS[kind](6, 4, **options))
    engine_only(model, [*data(5, 3, 1), *data(4, time=2)])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("cell", [nn.LSTM(6, 4, 2, proj_size=3), nn.RNN(6, 3, nonlinearity="relu")])
def test_projections_and_other_steps(cell):
    torch.manual_seed(0)
    cell(torch.zeros(1, 1, 6))  # torch warns once that oneDNN does not support projections
    engine_only(Uses(after_all, 3, cell=cell), data(4, 3))


def states(m, x):
    y, (h, c) = m.cell(x.transpose(0, 1))
    return h[-1] + c[0] + y.mean(0)


def step_by_step(m, x):
    state = x.new_zeros(len(x), 4)
    state = (state, state) if isinstance(m.cell, nn.LSTMCell) else state
    for now in x.unbind(1):
        state = m.cell(now, state)
    return state[0] if isinstance(state, tuple) else state


def twice(m, x):
    y = m.cell(x)[0]
    return m.cell(torch.cat([y, x[..., :2]], -1))[0][:, -1]


def learned(m, x):
    return m.cell(x, m.first.expand(-1, len(x), -1).contiguous())[1][-1]


def twice_with_two_lengths(m, x):
    return m.cell(x)[0][:, -1] + m.cell(x[:, :4])[0][:, -1]


def folded(m, x):
    """Each column of a sample is a sequence of its own."""
    return m.cell(x.transpose(1, 2).reshape(-1, x.shape[1], 1))[0][:, -1].view(len(x), -1, 4).mean(1)


def checkpointed(m, x):
    return checkpoint(lambda x: m.cell(m.inner(x))[0][:, -1], x, use_reentrant=False)


def edited(m, x):
    return m.cell(x)[0].relu_()[:, -1]


WHOLE = {
    "last states": lambda: Uses(states, cell=nn.LSTM(6, 4, 2)),
    "LSTM cell": lambda: Uses(step_by_step, cell=nn.LSTMCell(6, 4)),
    "GRU cell": lambda: Uses(step_by_step, cell=nn.GRUCell(6, 4)),
    "RNN cell": lambda: Uses(step_by_step, cell=nn.RNNCell(6, 4, nonlinearity="relu")),
    "called twice": lambda: Uses(twice, cell=nn.GRU(6, 4, batch_first=True)),
    "called with two lengths": lambda: Uses(twice_with_two_lengths, cell=nn.LSTM(6, 4, batch_first=True)),
    "several sequences of a sample": lambda: Uses(folded, cell=nn.LSTM(1, 4, batch_first=True)),
    "checkpoint": lambda: Uses(checkpointed, inner=nn.Linear(6, 6), cell=nn.LSTM(6, 4, 2, batch_first=True)),
    "result edited in place": lambda: Uses(edited, cell=nn.GRU(6, 4, batch_first=True)),
    "learned first state": lambda: Uses(
        learned, cell=nn.GRU(6, 4, 2, batch_first=True), first=nn.Parameter(torch.randn(2, 1, 4))
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_uses(name):
    torch.manual_seed(0)
    engine_only(WHOLE[name](), data(5, 3, 1))


def from_states(m, x):
    """First states made of the data, an input that needs a gradient, and all results used."""
    h, c = (m.first(x[:, t]).view(len(x), 4, 4).transpose(0, 1) for t in (0, 1))
    y, last = m.cell(m.inner(x), (h, c) if isinstance(m.cell, nn.LSTM) else h)
    return y.mean(1) + (last[0] - last[1] if isinstance(last, tuple) else last)[1:3].transpose(0, 1).flatten(1)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_float64_to_its_last_digits(cell):
    torch.manual_seed(0)
    cell = cell(6, 4, 2, batch_first=True, bidirectional=True)
    model = Uses(from_states, 8, cell=cell, inner=nn.Linear(6, 6), first=nn.Linear(6, 16)).double()
    engine_only(model, [(x.double(), y) for x, y in data(4, 3)], tolerance=1e-12)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("cell", [nn.LSTM(6, 4, 2, proj_size=3), nn.GRU(6, 3, bidirectional=True)])
def test_products_of_every_size_by_one_dnn(cell, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(written_out, "_LARGE", 0)
    cell(torch.zeros(1, 1, 6))
    engine_only(Uses(after_all, 3 * (1 + cell.bidirectional), cell=cell), data(4, 3))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind, autocast):
    torch.manual_seed(0)
    model, batches = Uses(after_all, cell=KINDS[kind](6, 4, batch_first=True)), data(32)
    rounded = [(x.bfloat16().float(), y) for x, y in batches]
    expected = oracle(model.bfloat16().float(), rounded)
    if autocast:
        seen = estimate(model, rounded, Autocast())
    else:
        seen = estimate(model.bfloat16(), [(x.bfloat16(), y) for x, y in rounded])
    assert distance(seen, expected) < 0.02


def by_first_value(m, x):
    """Two sequences of each sample, all sorted by their first values: another order in every batch."""
    rows = x.reshape(2 * len(x), -1, 3)
    order = rows[:, 0, 0].argsort()
    y = m.cell(rows[order])[0][:, -1]
    return torch.zeros_like(y).index_copy(0, order, y).view(len(x), 2, 4).sum(1)


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_in_an_order_that_depends_on_the_data(kind):
    """Only the weights of the states are trained, whose rows no call outside has moved."""
    torch.manual_seed(0)
    model = Uses(by_first_value, cell=KINDS[kind](3, 4, batch_first=True)).requires_grad_(False)
    model.cell.weight_hh_l0.requires_grad_()
    batches = data(4, 4, 4, time=6, width=3)
    batches[0][0].view(8, 3, 3)[:, 0, 0] = torch.arange(8.0)
    engine_only(model, batches)


class Doubled(torch.autograd.Function):
    """A function that the engine does not see."""

    @staticmethod
    def forward(_, weight):
        return 2 * weight

    @staticmethod
    def backward(_, gradient):
        return 2 * gradient


def test_a_weight_made_by_an_autograd_function_of_your_own():
    def forward(m, x):
        w_i, _, *biases = m.cell.all_weights[0]
        weights = [w_i, Doubled.apply(m.weight), *biases]
        return torch.gru(x, x.new_zeros(1, len(x), 4), weights, True, 1, 0.0, False, False, True)[0][:, -1]

    torch.manual_seed(0)
    model, batches = Uses(forward, cell=nn.GRU(6, 4, batch_first=True)), data(4, 3)
    model.cell.weight_hh_l0.requires_grad_(False)
    model.weight = nn.Parameter(torch.randn(12, 4))
    engine_only(model, batches)


def test_frozen_weights_stay_out():
    torch.manual_seed(0)
    model = Uses(after_all, cell=nn.LSTM(6, 4, batch_first=True))
    model.cell.weight_hh_l0.requires_grad_(False)
    assert "cell.weight_hh_l0" not in engine_only(model, data(4))


def test_groups_and_absolute_values():
    torch.manual_seed(0)
    model, (batch,) = Uses(after_all, cell=nn.GRU(6, 4, batch_first=True)).double(), data(6)
    batch = (batch[0].double(), torch.tensor([0, 1, 0, 2, 1, 0]))
    found = fisher_statistics(model, [batch], objective=_Classes(), key=-1, absolute=True, gradient=True)
    for key, one in found.groups.items():
        rows = (batch[1] == key).nonzero()[:, 0]
        assert distance(one.totals, oracle(model, [tuple(t[rows] for t in batch)], _Classes())) < 1e-12
    alone = [_gradients(model, (batch[0][i : i + 1], batch[1][i : i + 1])) for i in range(6)]
    expected = {n: sum(g[n].abs() for g in alone) for n in alone[0]}
    assert distance(found.absolute.totals, expected) < 1e-12


def _gradients(model, batch):
    named = dict(model.named_parameters())
    return dict(
        zip(named, torch.autograd.grad(_Classes().losses(model, batch).sum(), list(named.values())), strict=True)
    )


class _Classes(SumOfSquares):
    """The targets are read as numbers."""


def test_packed_sequences_make_the_whole_model_fall_back():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 5)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(self.cell(packed)[1][0][-1])

    torch.manual_seed(0)
    model = Packed()
    batches = [(x, torch.randint(1, 8, (len(x),)), y.float()) for x, y in data(5, 3)]
    with pytest.warns(UnlearnKitWarning, match=r"torch.lstm of cell.weight_ih_l0 .*: a packed sequence") as caught:
        seen = estimate(model, batches, SumOfSquares())
    assert len(caught) == 1
    assert distance(seen, oracle(model, batches, SumOfSquares())) < 1e-4


def test_reasons_for_the_fallback():
    x, h, weights = torch.ones(2, 3, 4), torch.ones(1, 3, 4), [torch.ones(4, 4)]
    assert hindrance(torch.gru, (x, h, weights, False, 1, 0.5, False, False, True)) is None
    assert "dropout" in hindrance(torch.gru, (x, h, weights, False, 1, 0.5, True, False, True))
    assert "packed" in hindrance(torch.gru, (x, torch.ones(2), h, weights, False, 1, 0.0, False, False))
    assert hindrance(torch.lstm_cell, (x, (h, h), *weights)) is None


def classifier(cell):
    """Embedding, layer norm and linear layers around a recurrent one."""

    def forward(m, x):
        x = m.norm(m.inner(m.table((x[..., 0] > 0).long() + 2 * (x[..., 1] > 0).long())))
        return m.cell(x)[0].mean(1)

    return Uses(forward, cell=cell, table=nn.Embedding(4, 6), inner=nn.Linear(6, 6), norm=nn.LayerNorm(6))


def test_layers_around_a_recurrent_fallback_keep_their_rules(monkeypatch):
    """Without the decomposition, the recurrent function is the only one without a rule."""
    torch.manual_seed(0)
    model, batches = classifier(nn.LSTM(6, 4, batch_first=True)), data(5, 3)
    fast = engine_only(model, batches)
    monkeypatch.setattr(written_out, "_WRITTEN_OUT", {})
    with pytest.warns(UnlearnKitWarning, match="no rule for") as caught:
        slow = estimate(copy.deepcopy(model), batches)  # whose plan is not known yet
    assert len(caught) == 1
    assert str(caught[0].message).startswith(
        "no rule for torch.lstm of cell.weight_ih_l0 and cell.weight_hh_l0 and cell.bias_ih_l0 and cell.bias_hh_l0: "
        "differentiated one sample at a time, that function alone"
    )
    assert distance(slow, {n: t.double() for n, t in fast.items()}) < 1e-5


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_with_samples_in_any_dimension(kind, batch_first, monkeypatch):
    """There are three time steps and three samples in the first probe: the second probe distinguishes them."""
    monkeypatch.setattr(written_out, "_WRITTEN_OUT", {})
    torch.manual_seed(0)
    cell = KINDS[kind](6, 4, batch_first=batch_first)
    forward = states if kind == "lstm" and not batch_first else after_all
    engine_only(Uses(forward, cell=cell), data(5, 1, time=3), slow=True)


class Normal(nn.Module):
    """A function with several outputs, of which the second is used too."""

    def __init__(self):
        super().__init__()
        self.inner, self.gain, self.shift = nn.Linear(6, 6), nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))

    def forward(self, x):
        y, mean, _ = torch.native_layer_norm(self.inner(x), (6,), self.gain, self.shift, 1e-5)
        return (y + mean).mean(1)


def test_custom_function_with_several_outputs():
    torch.manual_seed(0)
    seen = engine_only(Normal(), data(5, 3, 1), slow=True)
    assert float(seen["gain"].sum()) > 0


def test_gradient_of_an_output_unused_in_the_probe_is_detected():
    class Late(Normal):
        def forward(self, x):
            y, mean, _ = torch.native_layer_norm(self.inner(x), (6,), self.gain, self.shift, 1e-5)
            return y.mean(1) if x[0, 0, 0] < 10 else (y + mean).mean(1)

    torch.manual_seed(0)
    model, batches = Late(), data(4, 4)
    batches[1][0][0, 0, 0] = 20
    seen = estimate(model, batches)
    assert distance(seen, oracle(model, batches)) < 1e-4
