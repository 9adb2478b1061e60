"""Methods that train: worked examples of one step of plain gradient descent on two weights.

f(x) = (w₁·x, w₂·x) with w = (0, 0), so that p = (½, ½) for every x. The gradient of −log p_y by w is x·(p − e_y), and
that of KL(q ‖ p) is x·(p − q). The step size is 0.1, without momentum, in eval mode.
"""

import math

import pytest
import torch
from torch import nn
from unlearnkit_methods.bad_teacher import BadTeacher
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.neg_grad_plus import NegGradPlus
from unlearnkit_methods.retrain import Retrain
from unlearnkit_methods.salun import SalUn
from unlearnkit_methods.scrub import Scrub

from unlearnkit import Importance, UnlearningInputs

STEP = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1, "epochs": 1}


def line(first=0.0, second=0.0):
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[first], [second]]))
    return model


def sample(x, y):
    return [(torch.tensor([[x]]), torch.tensor([y]))]


def weights_after(method, model=None, **inputs):
    model = model or line()
    method.unlearn(model, UnlearningInputs(**inputs))
    return model.weight.flatten().tolist()


def test_finetune():
    """Retained (1, class 0): the gradient is (½, ½) − (1, 0) = (−½, ½)."""
    found = weights_after(FineTune(mode="eval", **STEP), retain_data=sample(1.0, 0))
    assert found == pytest.approx([0.05, -0.05])


def test_neg_grad_plus():
    """¾·(−½, ½) of the retain set − ¼·2·(½, −½) of the forget set, (2, class 1): (−⅝, ⅝)."""
    method = NegGradPlus(beta=0.75, mode="eval", **STEP)
    found = weights_after(method, retain_data=sample(1.0, 0), forget_data=sample(2.0, 1))
    assert found == pytest.approx([0.0625, -0.0625])


def test_bad_teacher():
    """The good teacher equals the student: no step. The bad one predicts q = (¼, ¾): the gradient is (½, ½) − q."""
    found = weights_after(
        BadTeacher(**STEP),
        retain_data=sample(1.0, 0),
        forget_data=sample(1.0, 0),
        model_factory=lambda: line(0.0, math.log(3)),
    )
    assert found == pytest.approx([-0.025, 0.025])


def test_scrub():
    """Student and teacher are equal at first: ascent has gradient 0; descent follows γ = ½ of (−½, ½)."""
    method = Scrub(gamma=0.5, alpha=0.3, max_epochs=1, mode="eval", **STEP)
    found = weights_after(method, retain_data=sample(1.0, 0), forget_data=sample(1.0, 1))
    assert found == pytest.approx([0.025, -0.025])


def test_scrub_climbs_once_it_differs():
    """Two epochs. After the first, w = (0.05, −0.05) and d(x_f) = KL(½ ‖ p) has the slope p − ½ = ±σ, climbed."""
    method = Scrub(gamma=1.0, alpha=0.0, max_epochs=2, mode="eval", **{**STEP, "epochs": 2})
    found = weights_after(method, retain_data=sample(1.0, 0), forget_data=sample(1.0, 0))
    p = 1 / (1 + math.exp(-0.1 / 4))  # T = 4: softened, and the gradient T²·(p − ½)/T
    climbed = 0.05 + 0.1 * 4 * (p - 0.5)
    step = 0.1 * (1 - 1 / (1 + math.exp(-2 * climbed)))
    assert found == pytest.approx([climbed + step, -climbed - step], rel=1e-5)


def test_salun():
    """Of two classes the wrong one is 0, for (1, class 1): the gradient is (−½, ½), for the salient weight alone."""
    method = SalUn(share=0.5, alpha=0.0, mode="eval", **STEP)
    forget = Importance(totals={"weight": torch.tensor([[3.0], [1.0]])}, count=1)
    found = weights_after(method, forget=forget, forget_data=sample(1.0, 1), retain_data=sample(1.0, 0))
    assert found == pytest.approx([0.05, 0.0])


def test_retrain():
    """From the fresh w = (0, 0) one step as in fine-tuning, whatever the model was."""
    found = weights_after(Retrain(**STEP), line(7.0, 9.0), retain_data=sample(1.0, 0), model_factory=line)
    assert found == pytest.approx([0.05, -0.05])
