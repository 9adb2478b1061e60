"""Parameters by name: digests, bits, and refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.prune import Prune

from unlearnkit import (
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    Importance,
    NonFiniteError,
    UnlearningInputs,
    UnsupportedModelError,
)
from unlearnkit.models import device_of, trainable
from unlearnkit.models.parameters import (
    bit_sum,
    bits,
    buffers,
    check_differentiable,
    check_finite,
    copy_of,
    count_changed,
    digest,
    parameters,
    wide,
)

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x).mean(1))


def test_tied_weights_are_one_and_frozen_ones_are_left_out():
    model = nn.Sequential(Tied(), nn.Linear(5, 2))
    model[1].bias.requires_grad_(requires_grad=False)
    assert list(parameters(model)) == ["0.embed.weight", "1.weight", "1.bias"]
    assert list(trainable(model)) == ["0.embed.weight", "1.weight"]
    assert trainable(model)["0.embed.weight"] is model[0].head.weight


def test_names_are_the_same_through_compile():
    model, compiled = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Module()
    compiled._orig_mod = model  # torch.compile stores the wrapped model under this name
    assert list(parameters(compiled)) == list(parameters(model))
    assert list(buffers(compiled)) == list(buffers(model))
    assert digest(compiled) == digest(model)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int8, torch.bool, torch.long],
)
def test_bits_and_digest_take_every_dtype(dtype):
    model = nn.Module()
    model.register_buffer("b", torch.tensor([[0, 1], [1, 1]]).to(dtype))
    before = digest(model)
    assert torch.equal(bits(model.b), bits(model.b.clone()))
    model.b[0, 0] = 1
    assert digest(model) != before
    assert bits(model.b).shape[:2] == (2, 2)


def test_bits_distinguish_signed_zeros_and_equal_nans():
    assert count_changed(torch.tensor([0.0, float("nan")]), torch.tensor([-0.0, float("nan")])) == 1


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8), st.data())
def test_changed_counts_elements_with_other_bits(words, data):
    before = torch.tensor(words, dtype=torch.uint32).view(torch.float32)
    flip = data.draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))
    after = torch.tensor([w ^ f for w, f in zip(words, flip, strict=True)], dtype=torch.uint32).view(torch.float32)
    assert count_changed(before, after) == sum(flip)


def test_the_digest_does_not_depend_on_strides_and_does_on_names_and_shapes():
    one, other = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    other.weight.data = one.weight.data.t().contiguous().t()
    assert not other.weight.is_contiguous()
    assert digest(one) == digest(other)
    assert digest(nn.Sequential(one)) != digest(one)
    other.weight.data = one.weight.data.reshape(3, 2)
    assert digest(one) != digest(other)
    assert digest(nn.Identity()) == digest(nn.ReLU())  # nothing to hash
    empty = nn.Module()
    empty.register_buffer("b", torch.zeros(0))
    assert digest(empty) != digest(nn.Identity())


def test_wide_is_at_least_float32():
    assert [wide(d) for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)] == [
        torch.float32,
        torch.float32,
        torch.float32,
        torch.float64,
    ]


def test_device_of_a_model_and_of_a_module_without_tensors():
    assert device_of(nn.Linear(2, 2)) == torch.device("cpu")
    assert device_of(nn.Identity()) == torch.device("cpu")
    with pytest.raises(ConfigurationError, match=r"one device, saw \['cpu', 'meta'\]: move the model"):
        device_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")))


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ConfigurationError, match=r"at least one trainable parameter, saw Linear with none: call"):
        trainable(nn.Linear(2, 2).requires_grad_(requires_grad=False))


def test_non_finite_tensors_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    check_finite(model, when="before the edit")
    with torch.no_grad():
        model[0].bias[1] = float("nan")
        model[1].running_var[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"before the edit, saw NaN or infinity in 0.bias of Seq"):
        check_finite(model, when="before the edit")


def made_for_inference():
    with torch.inference_mode():
        return nn.Linear(2, 2)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, dtype=torch.complex64))


UNUSUAL = {
    "weight: not initialised": lambda: nn.LazyLinear(2),
    "running_mean: not initialised": nn.LazyBatchNorm1d,
    "weight: without values": lambda: nn.Linear(2, 2, device="meta"),
    "weight: made under torch.inference_mode": made_for_inference,
    "w: complex": Complex,
}


@pytest.mark.parametrize("words", UNUSUAL)
def test_weights_without_values_or_real_squares_are_refused_by_name(words):
    with pytest.raises(UnsupportedModelError, match=words):
        check_differentiable(UNUSUAL[words]())


def test_an_estimate_refuses_them_before_anything_else():
    for make in UNUSUAL.values():
        with pytest.raises(UnsupportedModelError, match="expected ordinary real weights"):
            DiagonalFisher().estimate(make(), [(torch.ones(2, 2),)], objective=CrossEntropy())


@pytest.mark.parametrize("method", [Prune(tau=0.5), FineTune(epochs=1)], ids=lambda m: m.name)
def test_an_edit_refuses_them_too_and_a_model_that_is_frozen(method):
    def edit(model):
        forget = Importance(totals={"w": torch.ones(1)}, count=1)
        inputs = UnlearningInputs(forget=forget, retain_data=[(torch.ones(2, 2),)])
        method.unlearn(model, inputs)

    for words, make in UNUSUAL.items():
        if make is not made_for_inference:  # an elementwise edit takes it
            with pytest.raises(UnsupportedModelError, match=words):
                edit(make())
    with pytest.raises(ConfigurationError, match="at least one trainable parameter"):
        edit(nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_frozen_weights_of_eight_bits_are_checked_and_left_alone(dtype):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    frozen = nn.Parameter(torch.ones(2, 2).to(dtype), requires_grad=False)
    model[0].weight = frozen
    forget = Importance(totals={"1.weight": torch.ones(2, 2)}, count=1)
    assert Prune().unlearn(model, UnlearningInputs(forget=forget)).changed == 4
    assert model[0].weight is frozen
    model[0].weight.data = torch.full((2, 2), torch.nan).to(dtype)
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in 0\.weight"):
        check_finite(model, when="now")


def test_frozen_complex_weights_and_complex_buffers_are_taken():
    model = Complex().requires_grad_(False)
    model.register_buffer("b", torch.ones(2, dtype=torch.complex64))
    check_differentiable(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.complex64])
def test_the_sum_of_bits_is_that_of_their_words(dtype):
    tensor = torch.arange(-7, 8).to(dtype)
    raw = tensor.numpy().tobytes() if dtype != torch.bfloat16 else tensor.view(torch.int16).numpy().tobytes()
    whole, size = len(raw) // 8 * 8, tensor.element_size()
    words = np.frombuffer(raw[:whole], np.int64)
    rest = np.frombuffer(raw[whole:], f"{'u' if size == 1 else 'i'}{min(size, 8)}")
    assert (bit_sum(tensor) - int(words.sum()) - int(rest.sum())) % 2**64 == 0
    assert bit_sum(tensor.reshape(3, 5).t()) == bit_sum(tensor.reshape(3, 5).t().contiguous())


def test_the_sum_of_bits_takes_any_offset_and_notices_the_sign_of_zero():
    held = torch.zeros(5)
    before = bit_sum(held[1:])
    held[2] = -0.0
    assert before == bit_sum(torch.zeros(4)) != bit_sum(held[1:])
    assert bit_sum(torch.zeros(3, device="meta")) == bit_sum(torch.zeros(0)) == 0


def test_a_copy_keeps_weights_tied_that_share_memory():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight.data = model[0].weight.data
    copied = copy_of(model)
    assert copied[2].weight is copied[0].weight
    assert copied[0].weight.data_ptr() != model[0].weight.data_ptr()
    assert [*map(torch.equal, copied.state_dict().values(), model.state_dict().values())] == [True] * 6
    assert model[2].weight is not model[0].weight
