"""The shared training loop: unchanged weights keep their bits, randomness comes from the seed, errors are named."""

import copy
import math
import random
from collections import UserList
from itertools import chain

import attrs
import numpy as np
import pytest
import torch
import wrong_gradient_model as permuted
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import (
    ConfigurationError,
    CrossEntropy,
    MismatchError,
    Need,
    NonFiniteError,
    Pipeline,
    TrainingUnlearner,
    UnlearningInputs,
    UnsupportedModelError,
)
from unlearnkit.data import loader
from unlearnkit.models import OptimizerConfig
from unlearnkit.models.objective import Autocast
from unlearnkit.unlearning import EpochConfig, fine_tune

CE = CrossEntropy()
DESCENTS = [
    OptimizerConfig(optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.1),
    OptimizerConfig(optimizer="adam", learning_rate=0.05, weight_decay=0.1),
    OptimizerConfig(optimizer="adamw", learning_rate=0.05, weight_decay=0.1),
]
each_descent = pytest.mark.parametrize("optimizer", DESCENTS, ids=lambda d: d.optimizer)


def net(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 4))
    return model.to(dtype).eval()


def batches(count=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    xs = torch.randn(count, 4, 3, generator=generator, dtype=dtype)
    return [(x, torch.randint(4, (4,), generator=generator)) for x in xs]


def cross_entropy(model, batch):
    return CE.losses(model, batch).mean()


def tune(model, data=None, *, count=4, optimizer=DESCENTS[0], inputs=None, loss=cross_entropy, **options):
    passes = EpochConfig.epochs(batches() if data is None else data, loss, count=count)
    return fine_tune(model, passes, optimizer=optimizer, inputs=inputs or UnlearningInputs(), **options)


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# The losses of several batches


def test_batches_go_through_batch_norm_together_in_train_mode_alone():
    model, (one, two, _) = net(torch.float64), batches(dtype=torch.float64)
    model[3].p = 0.0
    inputs, apart = UnlearningInputs(), [cross_entropy(model, batch) for batch in (one, two)]
    assert all(map(torch.equal, inputs.mean_losses(model, [one, two]), apart))
    before = model[1].running_mean.clone()
    found = inputs.mean_losses(model.train(), [one, two])
    x = torch.cat([one[0], two[0]])
    hidden = model[0](x)
    normalised = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + model[1].eps).sqrt()
    logits = model[4](torch.tanh(normalised))
    expected = [nn.functional.cross_entropy(logits[:4], one[1]), nn.functional.cross_entropy(logits[4:], two[1])]
    assert [f.item() for f in found] == pytest.approx([e.item() for e in expected])
    assert torch.allclose(model[1].running_mean, 0.9 * before + 0.1 * hidden.mean(0)), "one pass, not two"


def test_batches_that_cannot_go_through_batch_norm_together_are_named():
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()).train()
    long, short = ((torch.randn(2, 1, size), torch.tensor([0, 1])) for size in (4, 3))
    seen = r"saw Tensor \(n, 1, 4\), Tensor \(n\); and Tensor \(n, 1, 3\), Tensor \(n\) .*; pad the samples"
    with pytest.raises(MismatchError, match=seen):
        UnlearningInputs().mean_losses(model, [long, short])
    assert len(UnlearningInputs().mean_losses(model.eval(), [long, short])) == 2


# The steps


def sgd_reference(model, optimizer, data, epochs):
    """SGD with momentum and an L2 penalty, in plain Python."""
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for _ in range(epochs):
        for batch in data:
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            grads = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for (name, p), grad in zip(model.named_parameters(), grads, strict=True):
                    first = not bool(velocity[name].any())
                    grad = grad + optimizer.weight_decay * p  # noqa: PLW2901
                    velocity[name] = grad if first else optimizer.momentum * velocity[name] + grad
                    p.sub_(optimizer.learning_rate * velocity[name])


def test_sgd_against_the_definition():
    model, oracle = net(torch.float64), net(torch.float64)
    data = batches(dtype=torch.float64)
    losses = tune(model, data, count=3)
    sgd_reference(oracle, DESCENTS[0], data, 3)
    for p, q in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert len(losses) == 3
    assert losses[-1] < losses[0]


@each_descent
def test_each_optimiser_is_the_one_of_torch(optimizer):
    cls = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer.optimizer]
    made = optimizer.optimizer_for(net())
    assert type(made) is cls
    group = made.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (optimizer.learning_rate, optimizer.weight_decay)
    assert group.get("momentum", 0.9) == 0.9


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_sparse_gradients_of_an_embedding_are_made_dense(optimizer):
    def trained(sparse):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 2, sparse=sparse), nn.Flatten(), nn.Linear(4, 3))
        data = [(torch.tensor([[0, 1], [1, 3]]), torch.tensor([0, 2]))] * 2
        FineTune(epochs=1, optimizer=optimizer).unlearn(model, UnlearningInputs(retain_data=data))
        return model.state_dict()

    for name, value in trained(sparse=False).items():
        assert torch.equal(trained(sparse=True)[name], value)


def test_the_mean_loss_of_each_pass_is_returned():
    seen = []

    def loss(model, batch):
        value = cross_entropy(model, batch)
        seen.append(value.detach())
        return value

    first, second = tune(net(), count=2, loss=loss)
    values = [float(value) for value in seen]
    assert (first, second) == pytest.approx((sum(values[:3]) / 3, sum(values[3:]) / 3))


def test_one_optimiser_serves_all_passes():
    one, other = net(), net()
    data = batches(2)
    tune(one, data, count=1)
    fine_tune(
        other,
        [EpochConfig(batches=[batch], loss=cross_entropy) for batch in data],
        optimizer=DESCENTS[0],
        inputs=UnlearningInputs(),
    )
    assert equal(state(one), state(other))


# What must not change


@each_descent
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_masked_and_frozen_weights_keep_their_bits_under_every_optimiser(optimizer, share):
    model = net()
    model[0].bias.requires_grad_(requires_grad=False)
    with torch.no_grad():
        model[4].weight[0, 0] = -0.0
    generator = torch.Generator().manual_seed(2)
    masks = {n: torch.rand(p.shape, generator=generator) < share for n, p in model.named_parameters() if n != "0.bias"}
    before = state(model)
    tune(model, count=5, optimizer=optimizer, masks=masks)
    after = state(model)
    for name, mask in masks.items():
        was, now = before[name][~mask], after[name][~mask]
        assert torch.equal(was.view(torch.int32), now.view(torch.int32)), name
        assert bool((before[name][mask] != after[name][mask]).all()), name
    assert torch.equal(before["0.bias"], after["0.bias"])


@each_descent
def test_without_a_mask_every_weight_moves(optimizer):
    model = net()
    before = state(model)
    tune(model, optimizer=optimizer, masks={"4.bias": torch.zeros(4, dtype=torch.bool)})
    moved = {name: bool((before[name] != p).all()) for name, p in model.named_parameters()}
    assert moved == {name: name != "4.bias" for name in moved}


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (
            {"4.wieght": torch.ones(4, 5, dtype=torch.bool)},
            r"4.wieght: no trainable parameter; did you mean '4.weight'",
        ),
        (
            {"4.weight": torch.ones(5, 4, dtype=torch.bool)},
            r"4.weight: expected a boolean tensor of shape \(4, 5\), saw",
        ),
        ({"4.bias": torch.ones(4)}, r"4.bias: expected a boolean tensor of shape \(4,\), saw torch.float32 of \(4,\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(masks, said):
    model = net()
    before = state(model)
    with pytest.raises(ConfigurationError, match=said):
        tune(model, masks=masks)
    assert equal(before, state(model))


# Surroundings


@pytest.mark.parametrize("training", [False, True])
def test_modes_gradients_and_generators_are_restored(training):
    model = net()
    model[2].train()
    modes = [m.training for m in model.modules()]
    seen = []

    def loss(student, batch):
        seen.append([m.training for m in student.modules()])
        return cross_entropy(student, batch)

    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    tune(model, loss=loss, training=training)
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == before
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert seen[0] == [training] * 6


def test_buffers_change_in_train_mode_only_and_not_where_batchnorm_is_frozen():
    model = net()
    before = state(model)
    tune(model)
    assert torch.equal(model[1].running_mean, before["1.running_mean"])
    tune(model, training=True)
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    frozen = net()
    frozen[1].requires_grad_(requires_grad=False)
    tune(frozen, training=True)
    assert torch.equal(frozen[1].running_mean, before["1.running_mean"])


def test_random_numbers_depend_on_the_seed():
    results = {}
    for seed, outside in [(0, 1), (0, 2), (3, 1)]:
        model = net()
        torch.manual_seed(outside)
        tune(model, inputs=UnlearningInputs(seed=seed), training=True)
        results[seed, outside] = state(model)
    assert equal(results[0, 1], results[0, 2])
    assert not equal(results[0, 1], results[3, 1])


def test_a_loader_in_the_order_of_its_data_set_is_reshuffled_in_each_pass_and_a_list_is_not():
    orders = {}

    def loss(student, batch):
        orders.setdefault(id(student), []).append(batch[0][:, 0].tolist())
        return cross_entropy(student, batch)

    x, y = torch.arange(24.0).reshape(8, 3), torch.zeros(8, dtype=torch.long)
    runs = []
    for data in (DataLoader(TensorDataset(x, y), batch_size=4), [(x[:4], y[:4]), (x[4:], y[4:])]):
        model = net()
        tune(model, data, count=2, loss=loss)
        runs.append(orders.pop(id(model)))
    shuffled, listed = runs
    first, second = ([i for batch in part for i in batch] for part in (shuffled[:2], shuffled[2:]))
    assert sorted(first) == sorted(second) == x[:, 0].tolist()
    assert len({tuple(first), tuple(second), tuple(x[:, 0].tolist())}) == 3
    assert listed == [x[:4, 0].tolist(), x[4:, 0].tolist()] * 2


def test_progress_names_every_pass():
    seen = []

    def progress(items, what, total):
        seen.append((what, total))
        return items

    tune(net(), count=2, inputs=UnlearningInputs(progress=progress))
    assert seen == [("epoch 1 of 2", 3), ("epoch 2 of 2", 3)]


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_switched_off(switch):
    model, other, data = net(), net(), batches()
    with switch():
        tune(model, data)
    tune(other, data)
    assert equal(state(model), state(other))


# Faults


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused_with_its_pass_and_batch_before_the_step(value):
    model, calls = net(), []

    def loss(student, batch):
        calls.append(state(student))
        return cross_entropy(student, batch) * (value if len(calls) == 5 else 1.0)

    with pytest.raises(NonFiniteError, match=r"saw NaN or infinity in epoch 2 of 4, batch 2: lower the learning rate"):
        tune(model, loss=loss)
    assert equal(calls[-1], state(model))
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_without_a_gradient_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"depends on a trainable parameter.*epoch 1 of 4, batch 1"):
        tune(net(), loss=lambda model, batch: cross_entropy(model, batch).detach())


@pytest.mark.parametrize("data", [[], iter([])])
def test_a_pass_without_batches_is_refused(data):
    with pytest.raises(ConfigurationError, match=r"at least one batch in epoch 1 of 4, saw none"):
        tune(net(), data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "adm"}, r"one of 'adam', 'adamw', 'sgd', saw 'adm'"),
        ({"learning_rate": 0.0}, r"OptimizerConfig.learning_rate \(η\): expected a number > 0, saw 0.0"),
        ({"weight_decay": -1.0}, r"expected a number ≥ 0, saw -1.0"),
        ({"momentum": 1.5}, r"expected a number ≥ 0 ≤ 1, saw 1.5"),
    ],
)
def test_numbers_out_of_range_are_named(options, said):
    with pytest.raises(ConfigurationError, match=said):
        OptimizerConfig(**options)


def test_exception_restores_modes_and_random_state():
    model, before = net(), torch.get_rng_state()

    def loss(student, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(model, loss=loss, training=True)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_optimiser_holds_the_model_that_is_trained_and_no_copy_of_it():
    model = net()
    teacher = copy.deepcopy(model)
    before = state(teacher)
    tune(model, loss=lambda m, b: cross_entropy(m, b) + 0.0 * cross_entropy(teacher, b))
    assert equal(before, state(teacher))
    assert not equal(before, state(model))


def test_passes_are_plain_values():
    one = EpochConfig(batches=[], loss=cross_entropy, name="x")
    assert attrs.evolve(one, name="y").name == "y"


@pytest.mark.parametrize("training", [True, False])
def test_steps_descend_where_torch_gradients_are_wrong(training):
    """One sample, and a norm followed by a permutation, for which torch computes wrong gradients."""
    one, other = permuted.pair()
    for model in (one, other):
        tune(
            model,
            permuted.data(1, 1),
            count=1,
            optimizer=OptimizerConfig(optimizer="sgd", learning_rate=0.1),
            training=training,
        )
    torch.testing.assert_close(state(one), state(other), rtol=1e-4, atol=1e-5)


def in_class_order():
    return [(torch.full((2, 2), float(i)), torch.tensor([i, i])) for i in range(4)]


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_batches_in_the_order_of_their_classes_is_reshuffled_in_each_pass(kind, record_property):
    record_property("tried", ("batches in the order of their classes", 1))
    seen = []

    def loss(model, batch):
        seen.append(batch[0][:, 0].tolist())
        return cross_entropy(model, batch)

    given = kind(in_class_order())
    model = nn.Linear(2, 4)
    tune(model, given, count=2, loss=loss)
    first, second = seen[:4], seen[4:]
    assert sorted(chain(*first)) == sorted(chain(*second)) == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert first != second
    assert any(len(set(rows)) > 1 for rows in first)
    assert [x[0, 0] for x, _ in given] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "classes",
    [[3, 2, 1, 0], [0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 0, 1, 1, 1, 0]],
    ids=["descending", "in blocks", "but for the last one"],
)
@pytest.mark.parametrize("kind", [list, UserList])
@pytest.mark.parametrize("objective", [CrossEntropy(), Autocast()], ids=["float32", "autocast"])
def test_batches_of_few_changes_of_the_class_are_reshuffled(classes, kind, objective, record_property):
    record_property("tried", ("batches in the order of their classes", 1))
    seen = []

    def loss(model, batch):
        seen.append(batch[0][:, 0].tolist())
        return cross_entropy(model, batch)

    given = kind((torch.full((4, 2), float(i)), torch.full((4,), i)) for i in classes)
    tune(nn.Linear(2, 4), given, count=1, loss=loss, inputs=UnlearningInputs(objective=objective))
    assert sorted(chain(*seen)) == sorted(float(i) for i in classes for _ in range(4))
    assert any(len(set(rows)) > 1 for rows in seen)


def test_a_list_in_another_order_or_without_labels_keeps_its_order():
    seen = []

    def loss(model, batch):
        seen.append(float(batch[0][0, 0]))
        return model(batch[0]).square().mean()

    mixed = in_class_order()
    mixed.append(mixed[0])
    for given in (mixed, [(x,) for x, _ in in_class_order()], [(x, y * 0) for x, y in in_class_order()]):
        tune(nn.Linear(2, 4), given, count=1, loss=loss)
    assert seen == [0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0]


def test_a_shuffled_list_keeps_each_sample_with_its_plain_values():
    seen = []

    def loss(model, batch):
        seen.extend(zip(batch["image"][:, 0].tolist(), batch["label"].tolist(), batch["file"], strict=True))
        return model(batch["image"]).mean()

    named = [{"image": x, "label": y, "file": [f"{int(x[0, 0])}-{i}" for i in range(2)]} for x, y in in_class_order()]
    inputs = UnlearningInputs(objective=CrossEntropy(inputs="image", targets="label"))
    tune(nn.Linear(2, 4), named, inputs=inputs, count=1, loss=loss)
    whole = [(float(x[i, 0]), int(y[i]), f"{int(x[i, 0])}-{i}") for x, y in in_class_order() for i in range(2)]
    assert sorted(seen) == sorted(whole)
    assert seen != whole


def test_a_list_in_the_order_of_its_classes_that_cannot_be_shuffled_is_refused():
    uneven = [(torch.zeros(2, 2), torch.tensor([0, 0])), (torch.zeros(2, 3), torch.tensor([1, 1]))]
    with pytest.raises(MismatchError, match=r"Tensor \(n, 3\), .* in the order of their classes; shuffle them before"):
        tune(nn.Linear(2, 4), uneven, count=1, loss=cross_entropy)


def test_a_full_set_that_is_smaller_than_the_forget_set_is_refused():
    x, y = torch.randn(24, 2), torch.arange(24) % 2
    run = Pipeline(unlearner=SelectiveSynapticDampening()).run
    with pytest.raises(
        ConfigurationError, match=r'forget set of 16 samples, saw 8 samples: .* reference_role="retain"'
    ):
        run(nn.Linear(2, 2), forget=[(x[:16], y[:16])], reference=[(x[16:], y[16:])])


def test_one_cycle_follows_its_formula_and_needs_the_number_of_steps():
    rates, optimizer = [], OptimizerConfig(optimizer="sgd", learning_rate=0.5, momentum=0.0, schedule="one-cycle")

    def loss(model, batch):
        rates.append(next(iter(held)).param_groups[0]["lr"])
        return cross_entropy(model, batch)

    held = []

    @attrs.frozen(kw_only=True)
    class Watched:
        schedule = "one-cycle"

        def optimizer_for(self, model):
            held.append(optimizer.optimizer_for(model))
            return held[0]

        def scheduler_for(self, made, steps):
            return optimizer.scheduler_for(made, steps)

    passes = (one for one in EpochConfig.epochs(batches(5), loss, count=4))  # 20 steps, 6 of them rising
    fine_tune(net(), passes, optimizer=Watched(), inputs=UnlearningInputs())
    rising = [0.5 * (0.04 + 0.96 * step / 6) for step in range(6)]
    assert rates == pytest.approx([*rising, *(0.5 * (20 - step) / 14 for step in range(6, 20))])
    with pytest.raises(ConfigurationError, match="batches whose number is known"):
        tune(net(), iter(batches()), optimizer=optimizer)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_forget_set_with_more_batches_is_read_in_rounds(as_list):
    """60 forgotten samples in 6 batches, 2 retained batches and 3 epochs: each forgotten sample once."""

    @attrs.frozen(kw_only=True)
    class Both(TrainingUnlearner):
        name = "both"
        needs = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})

        def passes(self, model, inputs):  # noqa: ARG002
            def loss(student, batches):
                seen.extend(batches[1][0][:, 0].tolist())
                return sum(inputs.mean_losses(student, batches))

            return self.paired_epochs(inputs, loss)

    seen, x = [], torch.arange(60.0)[:, None].repeat(1, 2) / 60
    forget = loader(TensorDataset(x, torch.arange(60) % 3), batch_size=10)
    retain = loader(TensorDataset(torch.randn(20, 2), torch.arange(20) % 3), batch_size=10)
    given = {"forget_data": list(forget) if as_list else forget, "retain_data": retain}
    Both(epochs=3).unlearn(nn.Linear(2, 3), UnlearningInputs(**given))
    assert sorted(seen) == pytest.approx(x[:, 0].tolist())
    if not as_list:
        assert seen != sorted(seen)
    seen.clear()
    Both(epochs=6).unlearn(nn.Linear(2, 3), UnlearningInputs(**given))
    assert sorted(seen[60:]) == pytest.approx(x[:, 0].tolist())
