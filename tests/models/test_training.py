"""The notebook's training loop."""

import itertools
import math
import random
import warnings

import numpy as np
import pytest
import torch
import wrong_gradient_model as permuted
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from unlearnkit.data import digits
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.models.objective import Objective
from unlearnkit.models.training import EpochRecord, OptimizerConfig, Training, train, training_mode
from unlearnkit.models.zoo import small_cnn
from unlearnkit.utils.errors import ConfigurationError, NonFiniteError, UnlearnKitWarning

X = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
DATA = TensorDataset(X, Y)


def net(dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))


def state(model):
    return [p.detach().clone() for p in model.parameters()]


def adam_oracle(weight, bias, batches, *, lr, decay=0.0):
    """Adam on softmax regression, in float64 and written out: returns weights, bias and each batch's losses."""
    theta = [weight.astype(np.float64), bias.astype(np.float64)]
    m, v = [np.zeros_like(t) for t in theta], [np.zeros_like(t) for t in theta]
    seen = []
    for step, (x, y) in enumerate(batches, start=1):
        logits = x @ theta[0].T + theta[1]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        seen.append((-np.log(p[np.arange(len(y)), y]), p.argmax(1) == y))
        error = (p - np.eye(p.shape[1])[y]) / len(y)
        for i, gradient in enumerate((error.T @ x, error.sum(0))):
            g = gradient + decay * theta[i]
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
            theta[i] = theta[i] - lr * (m[i] / (1 - 0.9**step)) / (np.sqrt(v[i] / (1 - 0.999**step)) + 1e-8)
    return theta, seen


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_two_epochs_agree_with_adam_written_out(decay):
    model = nn.Linear(3, 2)
    batches = [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:])]
    plain = [(x.double().numpy(), y.numpy()) for x, y in batches]
    weight, bias = model.weight.detach().numpy().copy(), model.bias.detach().numpy().copy()
    theta, seen = adam_oracle(weight, bias, plain * 2, lr=0.05, decay=decay)
    history = train(model, batches, training=Training(epochs=2, learning_rate=0.05, weight_decay=decay))
    np.testing.assert_allclose(model.weight.detach().numpy(), theta[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.bias.detach().numpy(), theta[1], rtol=0, atol=1e-5)
    for epoch, record in enumerate(history):
        part = seen[3 * epoch : 3 * epoch + 3]
        assert record.loss == pytest.approx(np.concatenate([losses for losses, _ in part]).mean(), abs=1e-5)
        assert record.accuracy == np.concatenate([hits for _, hits in part]).mean()
        assert record.seconds >= 0


def test_averages_are_weighted_by_samples_and_not_by_batches():
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([math.log(3.0), 0.0]))
    batches = [(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)), (torch.zeros(1, 1), torch.tensor([1]))]
    record = train(model, batches, training=Training(epochs=1, learning_rate=1e-12))[0]
    assert record.loss == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4, abs=1e-6)
    assert record.accuracy == 0.75


def test_the_same_seed_gives_the_same_bits():
    runs = []
    for seed in (1, 1, 2):
        model = net(dropout=0.5)
        history = train(model, DATA, training=Training(epochs=2, batch_size=4, seed=seed))
        runs.append((history, state(model)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert not torch.equal(runs[0][1][0], runs[2][1][0])


def test_the_global_random_state_neither_matters_nor_changes():
    before, first = torch.get_rng_state(), net(dropout=0.5)
    numbers, python = np.random.get_state()[1].copy(), random.getstate()
    train(first, DATA, training=Training(epochs=1, batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numbers)
    assert random.getstate() == python
    torch.rand(3)
    second = net(dropout=0.5)
    train(second, DATA, training=Training(epochs=1, batch_size=4))
    assert all(torch.equal(a, b) for a, b in zip(state(first), state(second), strict=True))
    torch.set_rng_state(before)


def test_data_set_is_reshuffled_in_each_epoch_under_one_bar():
    drawn, bars = [], []

    class Recorded(torch.utils.data.Dataset):
        def __len__(self):
            return len(DATA)

        def __getitem__(self, index):
            drawn.append(index)
            return DATA[index]

    def watch(steps, what, total):
        bars.append((what, total))
        return steps

    train(net(), Recorded(), training=Training(epochs=2, batch_size=4), progress=watch)
    assert bars == [("training, 2 epochs", 6)]
    first, second = drawn[: len(DATA)], drawn[len(DATA) :]
    assert sorted(first) == sorted(second) == list(range(len(DATA)))
    assert first != second


def test_a_loader_keeps_its_own_order_and_size():
    sizes, model = [], net()
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    train(model, DataLoader(DATA, batch_size=5))
    assert sizes == [5, 5] * 5  # five epochs by default


def test_on_epoch_is_called_for_each_epoch():
    heard = []
    history = train(net(), DATA, training=Training(epochs=3), on_epoch=lambda *args: heard.append(args))
    assert heard == list(enumerate(history, start=1))


def test_modes_are_put_back_and_gradients_cleared():
    model = net(dropout=0.5).eval()
    model[0].train()
    modes = []
    model[2].register_forward_hook(lambda module, *_: modes.append(module.training))
    train(model, DATA, training=Training(epochs=1))
    assert modes == [True]
    assert [module.training for module in model.modules()] == [False, True, False, False, False]
    assert all(p.grad is None for p in model.parameters())


def test_frozen_weights_stay_bit_identical():
    model = net()
    model[0].requires_grad_(False)
    before = state(model)
    train(model, DATA, training=Training(epochs=1, weight_decay=0.1))
    after = state(model)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[2], after[2])


def norm_net():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("samples", range(2, 11))
@pytest.mark.parametrize("as_loader", [True, False])
def test_a_last_batch_of_one_sample_is_left_out_with_batch_norm(samples, as_loader):
    data, model, seen, totals = TensorDataset(X[:samples], Y[:samples]), norm_net(), [], []
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))

    def watch(steps, what, total):
        totals.append(total)
        return steps

    for size in range(2, samples + 2):
        alone = samples % size == 1
        seen.clear()
        totals.clear()
        given = (
            DataLoader(data, batch_size=size) if as_loader else [data[i : i + size] for i in range(0, samples, size)]
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(model, given, training=Training(epochs=2), progress=watch)
        sizes = [min(size, samples - i) for i in range(0, samples - alone, size)]
        assert seen == sizes * 2
        assert totals == [2 * len(sizes)]
        said = [str(w.message) for w in caught if w.category is UnlearnKitWarning]
        assert [text[:35] for text in said] == ["batches of one sample were left out"] * alone


def test_data_set_and_iterator_lose_a_last_batch_of_one_too():
    model, data = norm_net(), TensorDataset(X[:9], Y[:9])
    for given in (data, Unsized([(X[:4], Y[:4]), (X[4:5], Y[4:5])])):
        with pytest.warns(UnlearnKitWarning, match="batches of one sample"):
            (record,) = train(model, given, training=Training(epochs=1, batch_size=4))
        assert math.isfinite(record.loss)


class Unsized:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_a_data_set_that_yields_batches_is_read_as_it_is():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(X[:4], Y[:4]), (X[4:8], Y[4:8])])

    (record,) = train(norm_net(), Stream(), training=Training(epochs=1))
    assert math.isfinite(record.loss)


def test_all_samples_are_used_without_batch_norm_and_where_it_is_in_eval_mode():
    data, model = TensorDataset(X[:9], Y[:9]), norm_net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net(), data, training=Training(epochs=1, batch_size=4))
        sizes = []
        with training_mode(model, torch.optim.SGD(model.parameters(), lr=0.1), seed=0, training=False) as usable:
            sizes += [len(x) for x, _ in usable(DataLoader(data, batch_size=4))]
    assert sizes == [4, 4, 1]


@pytest.mark.parametrize("given", [[(X[:1], Y[:1])], DataLoader(DATA, batch_size=1)])
def test_batches_of_one_sample_alone_are_refused_by_batch_norm(given):
    with pytest.raises(ConfigurationError, match=r"at least 2 samples for BatchNorm in train mode, saw 1 in epoch 1"):
        train(norm_net(), given, training=Training(epochs=1))


def test_batch_norm_of_maps_trains_on_batches_of_one():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    (record,) = train(model, [(torch.rand(1, 1, 3, 3), torch.tensor([0]))] * 2, training=Training(epochs=1))
    assert math.isfinite(record.loss)


def test_another_objective_has_no_accuracy():
    class SquaredError(Objective):
        def losses(self, model, batch):
            return (model(batch[0]) - batch[1]).square().sum(1)

    model = nn.Linear(3, 3)
    history = train(model, [(X, X)], objective=SquaredError(), training=Training(epochs=50, learning_rate=0.1))
    assert history[-1].accuracy is None
    assert history[-1].loss < 0.1 * history[0].loss


def test_it_learns_the_digits():
    torch.set_num_threads(1)
    bundle, model = digits(), small_cnn(seed=0)
    history = train(model, bundle.train, training=Training(epochs=3, learning_rate=3e-3))
    assert history[-1].loss < history[0].loss
    assert loss_and_accuracy(model, DataLoader(bundle.test, batch_size=450)).accuracy > 0.9


def test_records_are_compared_without_their_times():
    assert EpochRecord(loss=1.0, accuracy=0.5, seconds=1.0) == EpochRecord(loss=1.0, accuracy=0.5, seconds=2.0)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_epoch_and_batch(bad):
    model = nn.Linear(1, 2).eval()
    good = (torch.ones(1, 1), torch.tensor([0]))
    epochs = iter([[good, good], [good, (torch.tensor([[bad]]), torch.tensor([0]))]])

    class Later:
        def __iter__(self):
            return iter(next(epochs))

    with pytest.raises(NonFiniteError, match=r"in epoch 2, batch 2: lower the learning rate"):
        train(model, Later())
    assert not model.training
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_exhausted_iterator_is_refused():
    with pytest.raises(ConfigurationError, match=r"in epoch 2, saw none: .*not an iterator that is used up"):
        train(net(), iter([(X, Y)]), training=Training(epochs=2))


def test_nothing_to_train():
    with pytest.raises(ConfigurationError, match="at least one trainable parameter"):
        train(net().requires_grad_(False), DATA)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "Training.epochs: expected a whole number ≥ 1, saw 0"),
        ({"learning_rate": 0.0}, r"Training.learning_rate \(η\): expected a number > 0, saw 0.0"),
        ({"batch_size": 0}, "Training.batch_size"),
        ({"seed": -1}, "Training.seed"),
        ({"weight_decay": -1e-3}, "Training.weight_decay"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Training(**options)


@pytest.mark.gpu
def test_it_trains_where_the_model_is():
    model = net(dropout=0.5).cuda()
    before = torch.cuda.get_rng_state()
    history = train(model, DATA, training=Training(epochs=2))
    assert next(model.parameters()).is_cuda
    assert math.isfinite(history[-1].loss)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_steps_descend_where_torch_gradients_are_wrong():
    """One sample, and a norm followed by a permutation; the first step of Adam takes the sign of the gradient."""
    one, other = permuted.pair()
    for model in (one, other):
        train(model, permuted.data(1), training=Training(epochs=1))
    torch.testing.assert_close(one.two.weight, other.two.weight)
    torch.testing.assert_close(one.norm.weight, other.norm.weight)


def test_one_cycle_ends_with_tiny_steps():
    data = TensorDataset(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    model, weights = nn.Linear(4, 2), []
    options = Training(epochs=40, learning_rate=0.1, batch_size=4, schedule="one-cycle")
    train(model, data, training=options, on_epoch=lambda *_: weights.append(model.weight.detach().clone()))
    moves = [float((b - a).norm()) for a, b in itertools.pairwise(weights)]
    assert moves[-1] < 0.2 * max(moves)
    assert moves[0] < 0.5 * max(moves)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_is_refused_in_float16(optimizer):
    model = nn.Linear(2, 2).half()
    with pytest.raises(ConfigurationError, match="saw float16, in which squared gradients are 0 and steps NaN"):
        OptimizerConfig(optimizer=optimizer).optimizer_for(model)
    assert OptimizerConfig(optimizer="sgd").optimizer_for(model)
    assert OptimizerConfig().optimizer_for(model.bfloat16())
