"""The estimator's template method: mistakes of authors and users are refused, and the model is unchanged."""
# ruff: noqa: ARG002 - the signatures are the framework's

import random
from collections.abc import Callable

import attrs
import numpy as np
import pytest
import torch
import wrong_gradient_model as permuted
from torch import nn

from unlearnkit import (
    BatchedDiagonalFisher,
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    EstimatorTraits,
    Importance,
    ImportanceEstimator,
    MismatchError,
    NonFiniteError,
    Objective,
    UnsupportedModelError,
)
from unlearnkit.importance import Accumulator, Role
from unlearnkit.models import trainable
from unlearnkit.models.parameters import buffers, digest, parameters

CE = CrossEntropy()


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[3].bias.requires_grad_(requires_grad=False)
    model(torch.randn(5, 3)).sum().backward()
    return model


def data(batches=3, size=2):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, generator=generator), torch.randint(0, 2, (size,), generator=generator))
        for _ in range(batches)
    ]


def ones(model, count=1):
    return Importance(totals={n: torch.ones_like(p) for n, p in trainable(model).items()}, count=count)


@attrs.define
class Author(ImportanceEstimator):
    """An estimator that runs the test's function in the batch of a given number."""

    name = "author"
    traits = EstimatorTraits()

    _act: Callable = lambda _: None
    _returns: Callable = ones
    _at: int = 0
    seen: int = attrs.field(default=0, init=False)

    def estimate_batch(self, model, batch, *, objective):
        self.seen += 1
        if self.seen - 1 == self._at:
            self._act(model)
            return self._returns(model)
        return ones(model)


def state(model):
    return {
        "digest": digest(model),
        "objects": [(n, id(t), t.data_ptr()) for n, t in {**parameters(model), **buffers(model)}.items()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [(id(p.grad), None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "modules": [id(m) for m in model.modules()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "rng": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
    }


class Left:
    """Checks that a model is unchanged."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.before = state(self.model)

    def __exit__(self, *_):
        assert state(self.model) == self.before


def test_three_batches_of_ones():
    model = net()
    with Left(model):
        found = Author().estimate(model, data(), objective=CE, role="forget")
    assert list(found.totals) == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight"]
    assert all(bool((t == 3).all()) for t in found.totals.values())
    assert (found.count, found.samples, found.role) == (3, 6, Role.FORGET)
    assert found.trail.describe() == "3 × 2"
    kind = found.fingerprint
    assert (kind.estimator, kind.unit, kind.objective, kind.model) == ("author", "sample", CE.describe(), digest(model))
    assert kind.precision == "gradients float32, totals float32"


def test_relative_error_of_the_author_is_in_the_result():
    class Drawn(ImportanceEstimator):
        name = "drawn"
        scale = 1.0

        def estimate_batch(self, model, batch, *, objective):
            return ones(model)

        def relative_error(self, sizes):
            return self.scale / sum(sizes.values())

    assert Author().estimate(net(), data(), objective=CE).relative_error == 0.0
    assert Drawn().estimate(net(), data(), objective=CE).relative_error == pytest.approx(1 / 3)
    Drawn.scale = -3.0
    with pytest.raises(MismatchError, match=r"Importance.relative_error: expected a finite number ≥ 0 or None, saw -1"):
        Drawn().estimate(net(), data(), objective=CE)


# Return values of estimators


def without(name):
    def totals(model):
        return Importance(totals={n: t for n, t in ones(model).totals.items() if n != name}, count=1)

    return totals


def with_total(name, tensor):
    return lambda model: Importance(totals={**ones(model).totals, name: tensor}, count=1)


RETURNS = {
    "missing": (without("0.bias"), MismatchError, r"estimator 'author' \(.*Author\): 0.bias: expected, but missing"),
    "extra": (with_total("new", torch.ones(1)), MismatchError, r"new: not expected"),
    "frozen": (with_total("3.bias", torch.ones(2)), MismatchError, r"3.bias: not expected"),
    "shape": (with_total("0.bias", torch.ones(1)), MismatchError, r"0.bias: expected shape \(4,\), saw \(1,\)"),
    "dtype": (with_total("0.bias", torch.ones(4).half()), MismatchError, r"0.bias: expected float32 or float64"),
    "device": (with_total("0.bias", torch.ones(4, device="meta")), MismatchError, r"0.bias: .* on cpu, saw meta"),
    "nan": (with_total("0.bias", torch.full((4,), torch.nan)), NonFiniteError, r"NaN or infinity in 0.bias"),
    "inf": (with_total("0.bias", torch.full((4,), torch.inf)), NonFiniteError, r"NaN or infinity in 0.bias"),
    "negative": (with_total("0.bias", -torch.ones(4)), MismatchError, r"0.bias: expected importances ≥ 0"),
    "none": (lambda _: None, MismatchError, r"expected an Importance, saw NoneType"),
    "dict": (lambda m: dict(ones(m).totals), MismatchError, r"expected an Importance, saw dict"),
    "uncounted": (lambda m: ones(m, count=0), MismatchError, r"count of at least one term, saw 0"),
}


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(("returns", "error", "said"), RETURNS.values(), ids=RETURNS.keys())
def test_a_wrong_answer_is_refused_naming_estimator_parameter_and_batch(returns, error, said, at):
    model = net()
    with Left(model), pytest.raises(error, match=said) as caught:
        Author(returns=returns, at=at).estimate(model, data(), objective=CE)
    assert f"in batch {at} (counted from 0) of estimator 'author'" in caught.value.__notes__


def test_all_problems_are_listed_at_once():
    def wrong(model):
        return Importance(totals={"0.weight": torch.ones(2), "new": torch.ones(1)}, count=0)

    with pytest.raises(MismatchError, match=r"7 problems") as caught:
        Author(returns=wrong).estimate(net(), data(), objective=CE)
    assert all(word in str(caught.value) for word in ("0.bias", "1.weight", "1.bias", "3.weight", "new", "0.weight"))


# Estimators that change the model


def edit(model):
    with torch.no_grad():
        model[0].weight.zero_()


def edit_frozen(model):
    with torch.no_grad():
        model[3].bias.add_(1)


def edit_buffer(model):
    model[1].running_mean.add_(1)


def replace_buffer(model):
    model[1].running_mean = torch.ones(4)


def grow(model):
    model.append(nn.Linear(2, 2))


def replace(model):
    model[0].weight = nn.Parameter(torch.zeros(4, 3))


def thaw(model):
    model.requires_grad_(requires_grad=True)


def freeze(model):
    model.requires_grad_(requires_grad=False)


def train(model):
    model.train()


def gradients(model):
    for p in model.parameters():
        p.grad = torch.ones_like(p)


def draw(_):
    random.random()
    np.random.random()
    torch.rand(3)


def hook(model):
    model[0].register_forward_hook(lambda *_: None)


EDITS = {
    edit: "0.weight: an estimator must not edit parameters",
    edit_frozen: "3.bias: an estimator must not edit parameters",
    edit_buffer: "1.running_mean: an estimator must not edit buffers",
    replace_buffer: "1.running_mean: an estimator must not edit buffers",
    grow: "gained, lost or replaced a child module",
    replace: "0 gained, lost or replaced a parameter",
}


@pytest.mark.parametrize(("act", "said"), EDITS.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_estimator_that_edits_the_model_is_named_and_rolled_back(act, said):
    model = net()
    with Left(model), pytest.raises(MismatchError, match=r"estimator 'author' changed the model.*put back.*") as caught:
        Author(act, returns=lambda _: ones(net())).estimate(model, data(1), objective=CE)
    assert said in str(caught.value)


@attrs.frozen
class Careful(ImportanceEstimator):
    """Promises to leave the weights alone."""

    name = "careful"
    traits = EstimatorTraits(leaves_weights=True)

    _act: Callable

    def estimate_batch(self, model, batch, *, objective):
        self._act(model)
        return ones(net())


@pytest.mark.parametrize("act", [edit, edit_frozen], ids=lambda f: f.__name__)
def test_a_broken_promise_to_leave_the_weights_alone_is_noticed(act):
    name = EDITS[act].partition(":")[0]
    said = rf"(?s)'careful' changed the model.*no copy: load them again\).*{name}: an estimator must not edit"
    with pytest.raises(MismatchError, match=said):
        Careful(act).estimate(net(), data(1), objective=CE)


@pytest.mark.parametrize("act", [edit_buffer, replace_buffer, grow], ids=lambda f: f.__name__)
def test_all_but_the_weights_is_put_back_without_copies(act):
    model = net()
    with Left(model), pytest.raises(MismatchError, match="it was put back"):
        Careful(act).estimate(model, data(1), objective=CE)


def test_a_forward_pass_that_writes_weights_is_noticed():
    class Clipped(nn.Linear):
        def forward(self, x):
            self.weight.data.clamp_(-0.01, 0.01)
            return super().forward(x)

    with pytest.raises(MismatchError, match=r"(?s)or its forward pass did .*load them again.*weight"):
        DiagonalFisher().estimate(Clipped(4, 3), [(torch.rand(2, 4), torch.tensor([0, 1]))], objective=CE)


@pytest.mark.parametrize("act", [train, gradients, draw, hook, thaw, freeze], ids=lambda f: f.__name__)
def test_modes_gradients_flags_hooks_and_random_state_are_restored_silently(act):
    model = net()
    with Left(model):
        assert Author(act, returns=lambda _: ones(net())).estimate(model, data(1), objective=CE).count == 1


def test_estimator_that_unfreezes_a_parameter_is_refused():
    model = net()
    with Left(model), pytest.raises(MismatchError, match=r"3.bias: not expected"):
        Author(thaw).estimate(model, data(1), objective=CE)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(1), RuntimeError("other")])
@pytest.mark.parametrize(
    "act", [edit, edit_frozen, edit_buffer, replace_buffer, grow, replace, draw, train, hook, thaw]
)
def test_exception_midway_restores_the_model(act, error):
    def act_and_raise(model):
        act(model)
        raise error

    model = net()
    with Left(model), pytest.raises(type(error)):
        Author(act_and_raise, at=1).estimate(model, data(), objective=CE)


def test_error_of_the_estimator_gets_a_note_with_the_batch():
    def act(_):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        Author(act, at=1).estimate(net(), data(), objective=CE)
    assert caught.value.__notes__ == ["in batch 1 (counted from 0) of estimator 'author'"]


def test_the_author_sees_eval_mode_no_gradients_and_grad_enabled():
    seen = {}

    def act(model):
        seen.update(
            training=any(m.training for m in model.modules()),
            grads=[p.grad for p in model.parameters()],
            enabled=torch.is_grad_enabled(),
        )

    model = net()
    with torch.no_grad():
        Author(act).estimate(model, data(), objective=CE)
    assert seen == {"training": False, "grads": [None] * 6, "enabled": True}


def test_backward_of_one_batch_is_not_added_to_the_gradients_of_the_next():
    class Backward(ImportanceEstimator):
        name = "backward"
        traits = EstimatorTraits(unit="batch")

        def estimate_batch(self, model, batch, *, objective):
            objective.losses(model, batch).mean().backward()
            return Importance(totals={n: p.grad.square() for n, p in trainable(model).items()}, count=1)

    model = net()
    model.eval()
    alone = [Backward().estimate(model, [batch], objective=CE).totals for batch in data()]
    together = Backward().estimate(model, data(), objective=CE).totals
    for name, total in together.items():
        torch.testing.assert_close(total, sum(part[name] for part in alone))


def test_estimator_may_return_the_same_tensors_for_every_batch():
    model = net()
    kept = ones(model)
    found = Author(returns=lambda _: kept, at=0).estimate(model, data(), objective=CE)
    assert all(bool((t == 3).all()) for t in found.totals.values())
    assert all(bool((t == 1).all()) for t in kept.totals.values())


def test_custom_accumulator_is_checked():
    class Own(Author):
        def accumulator(self, model, *, objective):
            outer = self

            class Last(Accumulator):
                def add(self, batch):
                    outer._act(model)

                def result(self):
                    return outer._returns(model)

            return Last()

    model = net()
    assert Own().estimate(model, data(), objective=CE).samples == 6
    with Left(model), pytest.raises(NonFiniteError, match=r"0.bias"):
        Own(returns=RETURNS["nan"][0]).estimate(model, data(), objective=CE)
    with Left(model), pytest.raises(MismatchError, match=r"must not edit buffers"):
        Own(edit_buffer).estimate(model, data(), objective=CE)


@attrs.frozen
class Absolute(ImportanceEstimator):
    """An ordinary estimator, without a workaround for wrong gradients; optionally with its own backward pass."""

    name = "absolute"
    traits = EstimatorTraits()

    _own_pass: bool

    def estimate_batch(self, model, batch, *, objective):
        weights = trainable(model)
        found = torch.autograd.grad(objective.losses(model, batch).sum(), list(weights.values()))
        totals = {name: g.abs() for name, g in zip(weights, found, strict=True)}
        return Importance(totals=totals, count=len(batch[0]))

    def accumulator(self, model, *, objective):
        return Own(self, model, objective) if self._own_pass else super().accumulator(model, objective=objective)


class Own(Accumulator):
    def __init__(self, estimator, model, objective):
        self.measure, self.total = lambda batch: estimator.estimate_batch(model, batch, objective=objective), None

    def add(self, batch):
        one = self.measure(batch)
        self.total = one if self.total is None else self.total + one

    def result(self):
        return self.total


@pytest.mark.parametrize("estimator", [Absolute(own_pass=False), Absolute(own_pass=True)])
def test_gradients_are_correct_where_torch_is_wrong(estimator):
    """The relative error of torch's own was 100 %."""
    found, expected = (estimator.estimate(m, permuted.data(3, 1), objective=CE).totals for m in permuted.pair())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # torch.compile on Python 3.13.0
def test_fullgraph_compiled_layer_is_not_broken():
    """A gradient hook inside it would break its graph, an error with fullgraph=True."""
    model = permuted.Permuted(nn.BatchNorm2d(3)).eval()
    model.one = torch.compile(nn.Sequential(model.one, nn.BatchNorm2d(3)).eval(), backend="aot_eager", fullgraph=True)
    assert Absolute(own_pass=False).estimate(model, permuted.data(2), objective=CE).count == 2


# Mistakes of users


@pytest.mark.parametrize("estimator", [DiagonalFisher(), BatchedDiagonalFisher(), Author()], ids=lambda e: e.name)
class TestEveryEstimator:
    def test_no_data(self, estimator):
        model = net()
        for nothing in ([], iter(()), (b for b in ())):
            with (
                Left(model),
                pytest.raises(ConfigurationError, match=r"forget importance, saw an empty iterable.*once"),
            ):
                estimator.estimate(model, nothing, objective=CE, role="forget")

    def test_an_unknown_role(self, estimator):
        model = net()
        with Left(model), pytest.raises(ConfigurationError, match=r"saw 'forgot'; did you mean 'forget'"):
            estimator.estimate(model, data(), objective=CE, role="forgot")

    def test_a_nan_in_the_model(self, estimator):
        model = net()
        with torch.no_grad():
            model[0].bias[0] = torch.nan
            model[1].running_var[0] = torch.inf
        with Left(model), pytest.raises(NonFiniteError, match=r"before an importance.*0.bias of "):
            estimator.estimate(model, data(), objective=CE)

    def test_nothing_to_train(self, estimator):
        model = net().requires_grad_(requires_grad=False)
        with Left(model), pytest.raises(ConfigurationError, match=r"at least one trainable parameter"):
            estimator.estimate(model, data(), objective=CE)

    def test_an_empty_batch_is_named(self, estimator):
        model = net()
        batches = [*data(1), (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))]
        with Left(model), pytest.raises(MismatchError, match=r"at least one sample, saw 0") as caught:
            estimator.estimate(model, batches, objective=CE)
        assert "in batch 1" in caught.value.__notes__[0]

    def test_a_loader_that_fails_midway(self, estimator):
        def loader():
            yield from data(1)
            raise OSError("disk gone")

        model = net()
        with Left(model), pytest.raises(OSError, match="disk gone"):
            estimator.estimate(model, loader(), objective=CE)

    def test_random_state_used_by_the_loader_is_restored(self, estimator):
        def loader():
            for batch in data():
                torch.rand(3)
                yield batch

        model = net()
        with Left(model):
            estimator.estimate(model, loader(), objective=CE)

    def test_progress_is_shown_the_batches(self, estimator):
        calls = []

        def progress(items, what, total):
            calls.append((what, total))
            return items

        estimator.estimate(net(), data(), objective=CE, role="retain", progress=progress)
        assert calls == [("importance: retain", 3)]


def test_a_loss_without_gradients_is_refused():
    class Cut(Objective):
        def losses(self, model, batch):
            with torch.no_grad():
                return CE.losses(model, batch)

    model = net()
    with Left(model), pytest.raises(UnsupportedModelError, match=r"depends on a trainable parameter.*no_grad"):
        BatchedDiagonalFisher().estimate(model, data(), objective=Cut())


@pytest.mark.parametrize("estimator", [DiagonalFisher(), BatchedDiagonalFisher()], ids=lambda e: e.name)
class TestEveryFisher:
    def test_a_nan_in_one_batch_names_parameter_and_batch(self, estimator):
        batches = data()
        batches[2][0][1, 0] = torch.nan
        model = net()
        with Left(model), pytest.raises(NonFiniteError, match=r"0.weight") as caught:
            estimator.estimate(model, batches, objective=CE)
        assert any("batch 2" in note for note in [str(caught.value), *getattr(caught.value, "__notes__", [])])

    def test_a_label_out_of_range(self, estimator):
        model = net()
        batches = [*data(1), (torch.zeros(2, 3), torch.tensor([0, 2]))]
        with Left(model), pytest.raises(ConfigurationError, match=r"labels from 0 to 1") as caught:
            estimator.estimate(model, batches, objective=CE)
        assert "in batch 1" in caught.value.__notes__[0]

    def test_a_loss_that_is_averaged(self, estimator):
        class Mean(Objective):
            def losses(self, model, batch):
                return CE.losses(model, batch).mean()

        model = net()
        with Left(model), pytest.raises(MismatchError, match=r"Mean.losses must return one loss per sample"):
            estimator.estimate(model, data(), objective=Mean())

    def test_random_numbers_and_buffers_of_the_model_in_eval_mode(self, estimator):
        model = net().train()
        with Left(model):
            one = estimator.estimate(model, data(), objective=CE)
            two = estimator.estimate(model, data(), objective=CE)
        assert all(torch.equal(one.totals[n], two.totals[n]) for n in one.totals)
