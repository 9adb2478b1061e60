"""`jit`: smooths the model around the forget set."""

import pytest
import torch
from torch import nn
from unlearnkit_methods.jit import JustInTime

from unlearnkit import CrossEntropy, UnlearningInputs, UnsupportedModelError
from unlearnkit.testing import parametrize_with_checks


@parametrize_with_checks(
    [JustInTime(draws=2), JustInTime(draws=2, through="both", sigma=0.1, clip=False, reduction="mean")]
)
def test_contract(subject, law):
    law.check(subject, examples=6)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("through", ["clean", "both"])
def test_equals_a_plain_training_loop(tiny, close, through, reduction, clip):
    options = {"sigma": 0.7, "draws": 3, "epochs": 2, "learning_rate": 0.05}
    model, report = tiny.unlearned(JustInTime(**options, through=through, reduction=reduction, clip=clip))
    oracle = tiny.model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for x, _ in tiny.forget * 2:
            places = [x + 0.7 * torch.randn_like(x) for _ in range(3)]
            if clip:
                places = [place.clamp(float(x.min()), float(x.max())) for place in places]

            def loss(m, x=x, places=places):
                terms = []
                for place in places:
                    moved = m(place)
                    far = m(x) - (moved if through == "both" else moved.detach())
                    step = place - x
                    terms += [far[i].square().sum().sqrt() / step[i].square().sum().sqrt() for i in range(len(x))]
                return sum(terms) / (3 if reduction == "sum" else len(terms))

            tiny.steps(oracle, [loss])
    close(model, oracle)
    assert report.buffers_changed == ()


def test_loss_worked_example():
    """f(x) = x·(1, −1), x = 1: ‖f(x) − f(x + ξ)‖/|ξ| = √2 for any noise ξ; one step shrinks w."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    data = [(torch.tensor([[1.0], [5.0]]), torch.tensor([0, 1]))]
    method = JustInTime(through="both", learning_rate=0.1, clip=False)
    method.unlearn(model, UnlearningInputs(forget_data=data))
    # d/dw ‖w‖ = w/‖w‖ = (1, −1)/√2 for each of the two samples
    assert model.weight.flatten().tolist() == pytest.approx([1 - 0.2 / 2**0.5, -1 + 0.2 / 2**0.5])


def test_clipping_without_remaining_noise_changes_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    data = [(torch.ones(3, 2), torch.tensor([0, 1, 0]))]  # smallest and largest value are 1
    report = JustInTime(through="both").unlearn(model, UnlearningInputs(forget_data=data))
    assert report.changed == 0


def test_neither_labels_nor_the_retain_set_are_used(tiny, close):
    flipped = [(x, 3 - y) for x, y in tiny.forget]
    one, _ = tiny.unlearned(JustInTime(draws=2))
    other, _ = tiny.unlearned(JustInTime(draws=2), forget_data=flipped, retain_data=None)
    close(one, other, rtol=0, atol=0)


def roughness(model, x):
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        noise = 0.5 * torch.randn(200, *x.shape, dtype=x.dtype)
        far = torch.stack([model(x + n) - model(x) for n in noise]).norm(dim=-1)
        return float((far / noise.norm(dim=-1)).mean())


def test_the_model_becomes_smoother_where_it_forgets(tiny):
    before = tiny.model()
    model, _ = tiny.unlearned(
        JustInTime(epochs=10, draws=10, learning_rate=0.02, through="both", clip=False, reduction="mean")
    )
    for x, _ in tiny.forget:
        assert roughness(model, x) < 0.9 * roughness(before, x)


def test_integer_input_is_refused():
    model = nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(4, 3))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=r"jit adds noise to the input: .* saw torch.int64"):
        JustInTime().unlearn(
            model, UnlearningInputs(forget_data=[(torch.zeros(2, 2, dtype=torch.long), torch.tensor([0, 1]))])
        )
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_an_input_by_name_is_refused():
    class Named(nn.Linear):
        def forward(self, pixels):
            return super().forward(pixels)

    named = [{"pixels": torch.zeros(2, 2), "labels": torch.tensor([0, 1])}]
    objective = CrossEntropy(inputs=("pixels",), targets="labels")
    with pytest.raises(UnsupportedModelError, match="expected one floating tensor by position, saw pixels"):
        JustInTime().unlearn(Named(2, 3), UnlearningInputs(forget_data=named, objective=objective))


def test_noise_that_does_not_change_the_output_gives_no_edit():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.zero_()
    report = JustInTime().unlearn(model, UnlearningInputs(forget_data=[(torch.ones(1, 2), torch.tensor([0]))]))
    assert report.sentence() == "jit changed nothing: 0 of 6 weights."
