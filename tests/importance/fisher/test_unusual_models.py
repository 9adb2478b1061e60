"""More complete models in the engine: modes of torch and unusual layers."""

import dataclasses
import warnings

import pytest
import torch
from fisher_oracle import SumOfSquares, distance, engine_only, estimate, oracle
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from unlearnkit import CrossEntropy, DiagonalFisher, Objective, UnlearnKitWarning, UnsupportedModelError


def images(*sizes, side=6, dtype=torch.float32):
    torch.manual_seed(1)
    return [(torch.randn(n, 3, side, side, dtype=dtype), torch.randint(0, 5, (n,))) for n in sizes]


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5)).eval()


def test_dataclass_outputs():
    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor
        other: int = 0

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, x):
            return Output(logits=self.inner(x))

    engine_only(Wrapped(), images(4, 3, 1))


def test_dropout_is_off():
    model = nn.Sequential(*small(), nn.Dropout(0.5)).train()
    data = images(4)
    seen = engine_only(model, data)
    assert model.training
    assert distance(seen, oracle(model.eval(), data)) < 1e-5


class Segments(nn.Module):
    """Two layers of which one is recomputed in the backward pass."""

    def __init__(self, *, reentrant):
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(108, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.reentrant = reentrant

    @classmethod
    def like(cls, other):
        made = cls(reentrant=False)
        made.load_state_dict(other.state_dict())
        return made

    def forward(self, x):
        x = self.stem(x.flatten(1)).relu()
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant).relu())


def test_non_reentrant_checkpointing():
    engine_only(Segments(reentrant=False), images(4, 3, 1))


def test_reentrant_checkpointing_falls_back_to_one_sample_at_a_time():
    """Such segments support only .backward(); no gradient may remain."""
    model, data = Segments(reentrant=True), images(4, 3)
    with pytest.warns(UnlearnKitWarning, match="use_reentrant") as caught:
        seen = estimate(model, data)
    assert len(caught) == 1
    assert all(p.grad is None for p in model.parameters())
    assert distance(seen, estimate(Segments.like(model), data)) < 1e-5


def test_a_compiled_part_of_a_model():
    model = small()
    model[3].compile(backend="eager")
    engine_only(model, images(4, 3, 1))
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_recurrent_cells_are_ordinary_layers():
    """A cell's weights are used at every step: their gradients are added before they are squared."""

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.across, self.head = nn.Linear(18, 4), nn.Linear(4, 4), nn.Linear(4, 5)

        def forward(self, x):
            state = x.new_zeros(len(x), 4)
            for step in x.flatten(2).reshape(len(x), 6, 18).unbind(1):
                state = (self.inside(step) + self.across(state)).tanh()
            return self.head(state)

    engine_only(Steps(), images(4, 3, 1))


def test_batch_norm_in_training_mode_is_refused():
    class Stubborn(nn.BatchNorm2d):
        def eval(self):
            return self

        def train(self, mode=True):  # noqa: ARG002
            self.training = True
            return self

    model = nn.Sequential(Stubborn(3), *small())
    with pytest.raises(UnsupportedModelError, match=r"BatchNorm on batch statistics in 0: per-sample gradients do not"):
        estimate(model, images(4))


class Failing(nn.Module):
    """Raises in the backward pass."""

    def forward(self, x):
        x = x.clone()
        if x.requires_grad:
            x.register_hook(self._fail)
        return x

    def _fail(self, g):  # noqa: ARG002
        raise KeyError("mine")


def test_an_exception_in_the_backward_pass_leaves_nothing_behind():
    model = small()
    model.insert(1, Failing())
    with pytest.raises(KeyError, match="mine"):
        estimate(model, images(4))
    assert _get_current_function_mode_stack() == []
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


class Branching(nn.Module):
    """Branches on the batch size: one and three samples take one branch, eight the other."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(108, 5)

    def forward(self, x):
        return self.f(x.flatten(1)) * (2.0 if float(x.abs().sum()) > 108 * 4 else 1.0)


def test_batch_size_dependent_branch_is_detected():
    model, data = Branching(), images(8)
    with pytest.warns(UnlearnKitWarning, match="the losses, which are others within a batch than alone"):
        seen = estimate(model, data)
    assert distance(seen, oracle(model, data)) < 1e-5


def test_a_function_without_a_rule_is_run_by_vmap():
    class Power(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.inner = nn.Parameter(torch.ones(5)), small()

        def forward(self, x):
            return self.inner(x).abs() ** self.w

    engine_only(Power(), images(4, 3))


def test_parameters_of_two_dtypes():
    """Half the model in float64: every parameter in its own precision."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(108, 4), nn.Linear(4, 5).double()

        def forward(self, x):
            return self.b(self.a(x.flatten(1)).double())

    seen = engine_only(Mixed(), images(4, 3))
    assert {seen["a.weight"].dtype, seen["b.weight"].dtype} == {torch.float32, torch.float64}


def test_channels_last_transposed_and_grouped():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3), nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.RMSNorm(16), nn.Linear(16, 5),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    data = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in images(4, 3)]
    engine_only(model, data)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_squares_in_float32(dtype):
    """Squares of gradients of 1e-5 underflow in float16."""

    class Tiny(Objective):
        def losses(self, model, batch):
            return 1e-4 * SumOfSquares().losses(model, batch)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    data = [(torch.randn(5, 6), torch.randn(5))]
    with torch.autocast("cpu", dtype):
        seen = estimate(model, data, Tiny())
    assert {t.dtype for t in seen.values()} == {torch.float32}
    assert distance(seen, oracle(model, data, Tiny())) < 0.1


def test_frozen_parameters_have_no_totals_and_cost_nothing():
    model = small()
    model[0].requires_grad_(False)
    assert set(engine_only(model, images(4))) == {"3.weight", "3.bias"}


def test_nested_estimates():
    """An objective that itself estimates: the outer estimate must not record the inner model's calls."""

    class Nested(Objective):
        def losses(self, model, batch):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                DiagonalFisher().estimate(
                    nn.Linear(3, 2), [(torch.randn(3, 3), torch.arange(3) % 2)], objective=CrossEntropy()
                )
            return CrossEntropy().losses(model, batch)

    model, data = small(), images(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = estimate(model, data, Nested())
    assert distance(seen, oracle(model, data)) < 1e-5


def test_scaled_dot_product_attention_with_packed_weights():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out, self.head = nn.Linear(18, 48, bias=False), nn.Linear(16, 16), nn.Linear(16, 5)

        def forward(self, x):
            tokens = x.flatten(2).reshape(len(x), 6, 18)
            q, k, v = self.qkv(tokens).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            return self.head(self.out(y).mean(1))

    engine_only(Attend(), images(4, 3, 1))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("whole", [True, False])
def test_scripted_modules_fall_back_to_one_sample_at_a_time(whole):
    """Calls inside a script cannot be intercepted."""
    model, data = small(), images(4, 3, 1)
    expected = oracle(model, data)
    scripted = torch.jit.script(model) if whole else nn.Sequential(*model[:3], torch.jit.script(model[3]))
    with pytest.warns(UnlearnKitWarning, match="used by a function that cannot be intercepted"):
        seen = estimate(scripted, data)
    assert distance(seen, expected) < 1e-5


def test_a_model_that_is_random_in_eval_mode_is_said_to_be():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 16), nn.Linear(16, 5)

        def forward(self, x):
            return self.two(F.dropout(self.one(x).relu(), 0.5))  # training=True is the default

    torch.manual_seed(0)
    with pytest.warns(UnlearnKitWarning, match="Drops gives one sample other losses each time, in eval mode"):
        estimate(Drops(), [(torch.randn(6, 4), torch.randint(0, 5, (6,)))])


@pytest.mark.parametrize("shape", [(1, 1, 16), (16,), (1, 16)])
@pytest.mark.parametrize("operate", [torch.add, torch.mul])
def test_a_parameter_with_dimensions_of_one_beside_time_major_data(shape, operate):
    class TimeMajor(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 16), nn.Linear(16, 5)
            self.p = nn.Parameter(torch.randn(shape))

        def forward(self, x):
            return self.two(operate(self.one(x).transpose(0, 1), self.p).tanh().mean(0))

    torch.manual_seed(0)
    engine_only(TimeMajor(), [(torch.randn(6, 3, 4), torch.randint(0, 5, (6,)))])
