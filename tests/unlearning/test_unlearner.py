"""The unlearner's template method: an edit is complete, counted and allowed, or rolled back."""
# ruff: noqa: ARG002 - the signatures are the framework's

import json
import math
import random
from collections.abc import Callable
from contextlib import nullcontext, suppress

import attrs
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from unlearnkit_methods.prune import Prune

from unlearnkit import (
    BudgetError,
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    Importance,
    MismatchError,
    Need,
    NonFiniteError,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    UnlearnKitError,
    UnlearnKitWarning,
    option,
    unlearn,
)
from unlearnkit.importance import Fingerprint, Role
from unlearnkit.models import parameters as parameters_module
from unlearnkit.models import trainable
from unlearnkit.models.parameters import bits, buffers, digest, parameters
from unlearnkit.models.snapshot import ModelSnapshot
from unlearnkit.unlearning.report import Report, TensorChange
from unlearnkit.unlearning.unlearner import _check_budget


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.frozen.requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.head(self.frozen(self.norm(self.embed(x))))


def net():
    torch.manual_seed(0)
    model = Net()
    model(torch.tensor([0, 1, 2])).sum().backward()
    model.norm.eval()
    return model


@attrs.frozen
class Author(Unlearner):
    """A method that runs the test's function."""

    name = "author"
    needs = frozenset()
    traits = UnlearnerTraits()

    _act: Callable = lambda _: None

    def apply(self, model, inputs):
        self._act(model)


def state(model, *, weights=True):
    found = {
        "objects": [(n, id(t), t.data_ptr()) for n, t in {**parameters(model), **buffers(model)}.items()],
        "buffers": [b.tolist() for b in buffers(model).values()],
        "frozen": [bits(p).tolist() for p in model.frozen.parameters()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [(id(p.grad), None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "modules": [id(m) for m in model.modules()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "rng": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
    }
    return {**found, "digest": digest(model)} if weights else found


class Left:
    """Checks that a model is unchanged."""

    def __init__(self, model, *, weights=True):
        self.model, self.weights = model, weights

    def __enter__(self):
        self.before = state(self.model, weights=self.weights)

    def __exit__(self, *_):
        assert state(self.model, weights=self.weights) == self.before


@torch.no_grad()
def zero_first_row(model):
    model.embed.weight[0] = 0


def test_row_of_a_tied_weight_is_counted_once():
    model = net()
    before = digest(model)
    with Left(model, weights=False):
        report = Author(zero_first_row).unlearn(model, UnlearningInputs())
    assert [(t.name, t.size, t.changed) for t in report.tensors] == [
        ("embed.weight", 20, 4),
        ("norm.weight", 4, 0),
        ("norm.bias", 4, 0),
    ]
    assert (report.changed, report.size, report.fraction) == (4, 28, 1 / 7)
    assert report.sentence() == "author changed 4 of 28 weights (14.3 %)."
    assert (report.model_before, report.model_after) == (before, digest(model))
    assert torch.equal(model.head.weight, model.embed.weight)
    assert list(report.seconds) == ["edit"]


@pytest.mark.parametrize("seed", range(5))
def test_changed_is_the_real_difference_in_bits(seed):
    generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def scatter(model):
        for p in trainable(model).values():
            p[torch.rand(p.shape, generator=generator) < 0.3] *= -1

    model = net()
    with torch.no_grad():
        model.norm.bias.zero_()  # 0 times −1 is −0: other bits
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    report = Author(scatter).unlearn(model, UnlearningInputs())
    want = {
        n: sum(
            np.float32(a).tobytes() != np.float32(b).tobytes()
            for a, b in zip(before[n].flatten().tolist(), p.flatten().tolist(), strict=True)
        )
        for n, p in trainable(model).items()
    }
    assert {t.name: t.changed for t in report.tensors} == want
    assert report.changed == sum(want.values())


def test_a_method_that_does_nothing_says_so():
    report = Author().unlearn(net(), UnlearningInputs())
    assert report.sentence() == "author changed nothing: 0 of 28 weights."
    assert Report(method="ssd", remarks=("It was not tried.",)).sentence() == "ssd changed nothing. It was not tried."


def test_the_author_sees_the_mode_the_model_was_in_and_no_gradients():
    seen = {}

    def act(model):
        seen.update(modes=[m.training for m in model.modules()], grads=[p.grad for p in model.parameters()])

    model = net()
    Author(act).unlearn(model, UnlearningInputs())
    assert seen == {"modes": [True, True, False, True, True], "grads": [None] * 5}


# One snapshot, one digest before and one after


@pytest.fixture
def calls(monkeypatch):
    """Count digests and checks that the weights of a model are finite."""
    seen = []
    for name in ("digest", "check_finite"):
        for module in ("unlearnkit.unlearning.unlearner", "unlearnkit.models.snapshot"):
            real = getattr(parameters_module, name)
            counted = lambda *args, name=name, real=real, **given: seen.append(name) or real(*args, **given)  # noqa: E731
            monkeypatch.setattr(f"{module}.{name}", counted)
    return seen


def test_an_edit_hashes_the_model_once_before_and_once_after(calls):
    Author(zero_first_row).unlearn(net(), UnlearningInputs())
    assert sorted(calls) == ["check_finite"] * 2 + ["digest"] * 2


@pytest.mark.parametrize("method", [Author(zero_first_row), Prune(tau=0.5)], ids=lambda m: m.name)
@pytest.mark.parametrize("copies", [True, False])
def test_a_snapshot_that_is_there_already_is_used_again(method, copies, calls):
    model = net()
    known = importance(model)
    with Left(model, weights=False):
        snapshot = ModelSnapshot(model, copies=copies)
        before = snapshot.digest
        snapshot.check_finite(when="before")
        snapshot.restore_surroundings()
        calls.clear()
        report = method.unlearn(model, UnlearningInputs(forget=known), snapshot=snapshot)
    assert calls.count("digest") == 1
    assert calls.count("check_finite") == (method.name == "author")  # an elementwise rule is checked piece by piece
    assert report.model_before == before != report.model_after
    snapshot.restore()
    assert digest(model) == before


# Forbidden changes


def edit_frozen(model):
    model.frozen.bias.data.add_(1)


def thaw_and_edit(model):
    model.frozen.requires_grad_(requires_grad=True)
    edit_frozen(model)


def edit_buffer(model):
    model.norm.running_mean.add_(1)


def replace_buffer(model):
    model.norm.running_var = torch.full((4,), 2.0)


def add_buffer(model):
    model.register_buffer("extra", torch.zeros(1))


def grow(model):
    model.extra = nn.Linear(2, 2)


def shrink(model):
    del model.frozen


def untie(model):
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())


def convert(model):
    model.half()


def reshape(model):
    model.embed.weight.data = torch.zeros(2, 2)


FORBIDDEN = {
    edit_frozen: r"frozen.bias: a frozen parameter was edited",
    thaw_and_edit: r"frozen.bias: a frozen parameter was edited",
    edit_buffer: r"norm.running_mean: a buffer was edited",
    replace_buffer: r"norm.running_var: a buffer was edited",
    add_buffer: r"Net gained or lost a buffer",
    grow: r"Net gained, lost or replaced a child module",
    shrink: r"Net gained, lost or replaced a child module",
    untie: r"head gained, lost or replaced a parameter",
    convert: r"embed.weight: expected shape \(5, 4\), torch.float32 on cpu, saw shape \(5, 4\), torch.float16",
    reshape: r"embed.weight: expected shape \(5, 4\), torch.float32 on cpu, saw shape \(2, 2\)",
}


@pytest.mark.parametrize(("act", "said"), FORBIDDEN.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_forbidden_changes_are_named_and_rolled_back(act, said):
    model = net()
    with (
        Left(model),
        pytest.raises(MismatchError, match=rf"(?s)method 'author' \(.*Author\) broke the contract.*{said}"),
    ):
        Author(lambda m: (zero_first_row(m), act(m))).unlearn(model, UnlearningInputs())


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
    torch.manual_seed(9)


def hook(model):
    model.head.register_forward_hook(lambda *_: None)


def thaw(model):
    model.requires_grad_(requires_grad=True)


@pytest.mark.parametrize("act", [freeze, thaw, train, gradients, draw, hook], ids=lambda f: f.__name__)
def test_modes_and_flags_are_restored_and_the_edit_is_kept(act):
    model = net()
    with Left(model, weights=False):
        report = Author(lambda m: (zero_first_row(m), act(m))).unlearn(model, UnlearningInputs())
    assert report.changed == 4
    assert bool((model.embed.weight[0] == 0).all())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_after_the_edit_is_refused(value):
    model = net()

    def spoil(model):
        model.embed.weight.data[2, 1] = value

    with Left(model), pytest.raises(NonFiniteError, match=r"after 'author' edited them .*embed.weight of Net"):
        Author(spoil).unlearn(model, UnlearningInputs())


def test_a_nan_before_the_edit_is_refused():
    model = net()
    with torch.no_grad():
        model.frozen.weight[0, 0] = math.nan
    with Left(model), pytest.raises(NonFiniteError, match=r"before 'author' edits them, saw.*frozen.weight of Net"):
        Author(zero_first_row).unlearn(model, UnlearningInputs())


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
@pytest.mark.parametrize("act", [*FORBIDDEN, zero_first_row, freeze, gradients, draw, hook], ids=lambda f: f.__name__)
def test_exception_restores_the_model(act, error):
    def act_and_raise(model):
        act(model)
        raise error

    model = net()
    with Left(model), pytest.raises(type(error)):
        Author(act_and_raise).unlearn(model, UnlearningInputs())


def test_accept_can_refuse_the_report():
    seen = []

    def refuse(report):
        seen.append((report.changed, bool((model.embed.weight[0] == 0).all())))
        raise KeyboardInterrupt

    model = net()
    with Left(model), pytest.raises(KeyboardInterrupt):
        Author(zero_first_row).unlearn(model, UnlearningInputs(), accept=refuse)
    assert seen == [(4, True)]


def test_a_budget_that_is_met_exactly_is_kept():
    """0.29 · 100 is 28.999…96 in floating point."""
    _check_budget((TensorChange(name="w", size=100, changed=29),), 0.29, method="m")
    with pytest.raises(BudgetError, match="saw 30 of 100"):
        _check_budget((TensorChange(name="w", size=100, changed=30),), 0.29, method="m")


def test_accept_must_return_the_report():
    model, message = net(), r"accept: expected it to return the report, or to raise .*saw False"
    with Left(model), pytest.raises(ConfigurationError, match=message):
        Author(zero_first_row).unlearn(model, UnlearningInputs(), accept=lambda _: False)


@pytest.mark.parametrize("empty", [[], DataLoader(TensorDataset(torch.zeros(0, 3)), batch_size=2)])
def test_data_without_a_batch_are_refused(empty):
    class Reads(Author):
        needs = frozenset({Need.FORGET_DATA})

    model = net()
    with Left(model), pytest.raises(ConfigurationError, match="forget_data: expected at least one batch, saw none"):
        Reads(zero_first_row).unlearn(model, UnlearningInputs(forget_data=empty))


@pytest.mark.parametrize(("budget", "allowed"), [(0.0, False), (0.14, False), (1 / 7, True), (1.0, True), (None, True)])
def test_the_budget_is_kept_or_the_edit_undone(budget, allowed):
    model = net()
    if allowed:
        assert Author(zero_first_row).unlearn(model, UnlearningInputs(max_fraction=budget)).changed == 4
        return
    with Left(model), pytest.raises(BudgetError, match=r"'author': expected at most .*saw 4 of 28 \(0.143\).*put back"):
        Author(zero_first_row).unlearn(model, UnlearningInputs(max_fraction=budget))


def test_budget_of_zero_allows_no_change():
    assert Author().unlearn(net(), UnlearningInputs(max_fraction=0)).changed == 0


@pytest.mark.parametrize("budget", [-0.1, 1.1, math.nan, "half", True])
def test_a_budget_that_is_no_fraction_is_refused(budget):
    with pytest.raises(ConfigurationError, match=r"UnlearningInputs.max_fraction: expected None or 0 to 1, saw"):
        UnlearningInputs(max_fraction=budget)


# UnlearningInputs


def importance(model, **fields):
    totals = {n: torch.ones(p.shape) for n, p in trainable(model).items()}
    return Importance(**{"totals": totals, "count": 1, "samples": 1, **fields})


@pytest.mark.parametrize("need", Need)
def test_missing_inputs_are_named(need):
    class Needy(Author):
        needs = frozenset({need})

    model = net()
    said = rf"inputs for 'author': expected {need.value} \(the method declares {need.name}\), saw None"
    with Left(model), pytest.raises(ConfigurationError, match=said):
        Needy(zero_first_row).unlearn(model, UnlearningInputs())


def test_all_missing_inputs_are_named_at_once():
    class Needy(Author):
        needs = frozenset(Need)

    with pytest.raises(ConfigurationError, match=r"5 problems"):
        Needy().unlearn(net(), UnlearningInputs())


def test_a_stale_importance_is_refused_so_that_a_request_cannot_be_repeated():
    model = net()
    model.requires_grad_(requires_grad=True)
    batches = [(torch.tensor([0, 1]), torch.tensor([2, 3]))]
    forget = DiagonalFisher().estimate(model, batches, objective=CrossEntropy(), role="forget")
    Author(zero_first_row).unlearn(model, UnlearningInputs(forget=forget))
    with Left(model), pytest.raises(MismatchError, match=r"the forget importance does not fit Net.*estimate again"):
        Author(zero_first_row).unlearn(model, UnlearningInputs(forget=forget))


@pytest.mark.parametrize("field", ["forget", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"fingerprint": Fingerprint(model="other")}, MismatchError, "measured on the weights other"),
        ({"totals": {"w": torch.ones(2)}}, MismatchError, "embed.weight: expected, but missing"),
        (
            {"role": Role.RETAIN, "totals": {"w": torch.ones(2)}},
            MismatchError,
            "the retain importance does not fit Net",
        ),
    ],
)
def test_mismatched_importance_is_refused_in_either_place(field, change, error, said):
    model = net()
    with Left(model), pytest.raises(error, match=rf"(?s){said}"):
        Author(zero_first_row).unlearn(model, UnlearningInputs(**{field: importance(model, **change)}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_an_importance_with_bad_values_is_refused(value):
    model = net()
    totals = {n: torch.full(p.shape, value) for n, p in trainable(model).items()}
    with Left(model), pytest.raises(ValueError, match=r"the unknown importance"):
        Author().unlearn(model, UnlearningInputs(forget=importance(model, totals=totals)))


@pytest.mark.parametrize("field", [f.name for f in attrs.fields(Fingerprint) if f.name not in {"model", "sample"}])
def test_two_kinds_of_importance_are_refused(field):
    model = net()
    other = importance(model, fingerprint=Fingerprint(**{field: "other"}))
    with Left(model), pytest.raises(MismatchError, match=rf"different kinds: {field}: '' against 'other'"):
        Author().unlearn(model, UnlearningInputs(forget=importance(model), reference=other))


def test_a_reference_may_be_of_a_sample_and_the_forget_set_must_be_exact():
    model = net()
    exact, sampled = importance(model), importance(model, fingerprint=Fingerprint(sample="2 of 9"))
    Author().unlearn(model, UnlearningInputs(forget=exact, reference=sampled))
    model = net()
    with Left(model), pytest.raises(MismatchError, match="different kinds: sample: '2 of 9' against ''"):
        Author().unlearn(model, UnlearningInputs(forget=sampled, reference=exact))


# Remarks and the report


def test_remark_is_a_warning_and_is_in_the_report():
    class Warns(Author):
        def remarks(self, inputs):
            return ("α is too large.",)

    model = net()
    with pytest.warns(UnlearnKitWarning, match="author: α is too large"):
        report = Warns().unlearn(model, UnlearningInputs())
    assert report.remarks == ("α is too large.",)
    assert report.sentence() == "author changed nothing: 0 of 28 weights. α is too large."


def test_warning_turned_into_an_error_restores_the_model():
    class Warns(Author):
        def remarks(self, inputs):
            return ("no",)

    model = net()
    with Left(model), pytest.raises(UnlearnKitWarning):  # the suite turns warnings into errors
        Warns(zero_first_row).unlearn(model, UnlearningInputs())


def test_the_report_is_plain_json():
    @attrs.frozen(kw_only=True)
    class Optioned(Unlearner):
        name = "optioned"
        needs = frozenset()
        alpha: float = option(math.inf, doc="α")

        def apply(self, model, inputs):
            zero_first_row(model)

    model = net()
    inputs = UnlearningInputs(forget=importance(model, role="forget"), reference=importance(model, role="full"))
    plain = json.loads(json.dumps(Optioned().unlearn(model, inputs).to_dict(), allow_nan=False))
    assert (plain["changed"], plain["size"], plain["options"]) == (4, 28, {"alpha": "inf"})
    assert [e["role"] for e in plain["evidence"]] == ["forget", "full"]
    assert plain["tensors"][0] == {"name": "embed.weight", "size": 20, "changed": 4, "fraction": 0.2}


@pytest.mark.parametrize("need", Need, ids=lambda need: need.name)
def test_an_input_that_is_not_declared_cannot_be_read_and_the_error_names_the_need(need):
    @attrs.frozen
    class Reads(Unlearner):
        name, needs = "reads", frozenset(set(Need) - {need})
        _when: str

        def apply(self, model, inputs):
            if self._when == "apply":
                getattr(attrs.evolve(inputs, seed=1), need.value)

        def remarks(self, inputs):
            return (str(getattr(inputs, need.value)),) if self._when == "remarks" else ()

    model, batches = net(), [(torch.ones(1, 3), torch.tensor([0]))]
    forget, reference = importance(model, role="forget"), importance(model, role="full")
    given = UnlearningInputs(
        forget=forget, reference=reference, forget_data=batches, retain_data=batches, model_factory=net
    )
    said = rf"'reads' reads inputs.{need.value} without declaring it: add Need.{need.name} to the needs of .*Reads"
    for when in ("apply", "remarks"):
        with pytest.raises(ConfigurationError, match=said):
            Reads(when).unlearn(model, given)
    assert getattr(given, need.value) is not None


def test_a_method_may_call_another_one_with_needs_that_it_declares_too():
    class Calls(Unlearner):
        name, needs = "calls", frozenset()

        def apply(self, model, inputs):
            self.inner = Prune().unlearn(model, inputs)

    class Declares(Calls):
        needs = Prune.needs

    model = net()
    given = UnlearningInputs(forget=importance(model, role="forget"))
    with pytest.raises(ConfigurationError, match=r"'calls' reads inputs.forget .*: add Need.FORGET_IMPORTANCE"):
        Calls().unlearn(model, given)
    calls = Declares()
    calls.unlearn(model, given)
    assert calls.inner.changed > 0


@attrs.frozen(kw_only=True)
class Leaves(Unlearner):
    """Leaves hooks and options of layers behind, as careless methods do."""

    name = "leaves"
    needs = frozenset()
    fails: bool = option(False, doc="at the end")

    def apply(self, model, inputs):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for p in model.parameters():
            p.register_hook(torch.zeros_like)
            p.register_post_accumulate_grad_hook(lambda p: None)  # noqa: ARG005
            p.data += 1
        if self.fails:
            raise OSError("disk")


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_of_weights_and_options_of_layers_are_put_back(fails):
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.3)).eval()
    method = Leaves(fails=fails)
    with pytest.raises(OSError, match="disk") if fails else nullcontext():
        method.unlearn(model, UnlearningInputs())
    assert model[1].p == 0.3
    model(torch.ones(1, 3)).sum().backward()
    assert float(model[0].weight.grad.abs().sum()) == 6
    assert not model[0].weight._post_accumulate_grad_hooks


class Merged(nn.Linear):
    """Merges an adapter into its weight in eval mode, as loralib does."""

    def __init__(self):
        super().__init__(3, 2)
        self.adapter, self.merged = nn.Parameter(torch.randn(2, 3)), False
        self.weight.requires_grad_(requires_grad=False)

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += self.adapter.data if not mode else -self.adapter.data
            self.merged = not mode
        return self

    def forward(self, x):
        return nn.functional.linear(x, self.weight if self.merged else self.weight + self.adapter, self.bias)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("method", ["ssd", "finetune"])
def test_a_model_whose_train_changes_weights_is_refused_and_left_as_it_was(mode, method):
    torch.manual_seed(0)
    model = nn.Sequential(Merged()).train(mode)
    before, x = digest(model), torch.randn(4, 3)
    expected, batch = model(x), [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    with suppress(UnlearnKitError):
        unlearn(model, method, forget=batch, retain=batch)
        return
    assert digest(model) == before
    assert (model[0].merged, model.training) == (not mode, mode)
    assert torch.equal(model(x), expected)
