"""Methods that train: worked examples of one step of plain gradient descent on two weights.

f(x) = (w₁·x, w₂·x) with w = (0, 0), so that p = (½, ½) for every x. The gradient of −log p_y by w is x·(p − e_y), and
that of KL(q ‖ p) is x·(p − q). The step size is 0.1, without momentum, in eval mode.
"""

import math

import pytest
import torch
from torch import nn
from unlearnkit_methods.bad_teacher import BadTeacher
from unlearnkit_methods.capped_neg_grad import CappedNegGrad
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.grad_diff import GradientDifference
from unlearnkit_methods.l1_sparse import L1Sparse
from unlearnkit_methods.neg_grad_plus import NegGradPlus
from unlearnkit_methods.npo import NegativePreference
from unlearnkit_methods.random_label import RandomLabel
from unlearnkit_methods.reset_last import ResetLast
from unlearnkit_methods.retrain import Retrain
from unlearnkit_methods.rmu import Rmu
from unlearnkit_methods.salun import SalUn
from unlearnkit_methods.scrub import Scrub
from unlearnkit_methods.shrink_perturb import ShrinkPerturb
from unlearnkit_methods.simnpo import SimpleNegativePreference
from unlearnkit_methods.undial import Undial

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


def test_grad_diff():
    """−2·(½, −½) of the forget set, (2, class 1), + ¾·(−½, ½) of the retain set: (−1⅜, 1⅜)."""
    method = GradientDifference(lam=0.75, **STEP)
    found = weights_after(method, retain_data=sample(1.0, 0), forget_data=sample(2.0, 1))
    assert found == pytest.approx([0.1375, -0.1375])


def test_npo():
    """π = π_ref at first, so that the push is −∇ℓ whatever β: −2·(½, −½) + ¾·(−½, ½) = (−1⅜, 1⅜)."""
    for beta in (0.1, 1.0):
        method = NegativePreference(beta=beta, lam=0.75, **STEP)
        found = weights_after(method, retain_data=sample(1.0, 0), forget_data=sample(2.0, 1))
        assert found == pytest.approx([0.1375, -0.1375])


def test_simnpo():
    """β = 2, γ = 0, ℓ = ln 2: −2·σ(−2·ln 2) = −⅖ times ∇ℓ = (1, −1), and (−½, ½) of the retain set: (−0.9, 0.9)."""
    method = SimpleNegativePreference(beta=2.0, gamma=0.0, lam=1.0, **STEP)
    found = weights_after(method, retain_data=sample(1.0, 0), forget_data=sample(2.0, 1))
    assert found == pytest.approx([0.09, -0.09])


def test_undial():
    """γ = ln 3 makes the target (¾, ¼) for (2, class 1): the gradient is 2·((½, ½) − (¾, ¼)) = (−½, ½)."""
    found = weights_after(Undial(gamma=math.log(3), **STEP), forget_data=sample(2.0, 1))
    assert found == pytest.approx([0.05, -0.05])


def test_rmu():
    """h = (0, 0): the gradient is the mean over two features of −2·c·u times x = 2, and 0 on the retain set."""
    found = weights_after(Rmu(layer="", c=3.0, **STEP), retain_data=sample(1.0, 0), forget_data=sample(2.0, 1))
    assert math.hypot(*found) == pytest.approx(0.1 * 2 * 3)
    assert min(found) > 0


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


@pytest.mark.parametrize(("target", "step"), [(2.0, 0.5 + 0.25), (0.5, 0.5)])
def test_capped_neg_grad(target, step):
    """(−½, ½) of the retain set and, while ln 2 is below the target, −¼·2·(½, −½) of the forget set (2, class 1)."""
    method = CappedNegGrad(target=target, c=0.25, mode="eval", **STEP)
    found = weights_after(method, retain_data=sample(1.0, 0), forget_data=sample(2.0, 1))
    assert found == pytest.approx([0.1 * step, -0.1 * step])


def test_shrink_perturb():
    """¼·(8, 4) + ¾·(−2, 2/3) = (½, 3/2); one step from there, p = σ(−1) for class 0."""
    method = ShrinkPerturb(shrink=0.25, mode="eval", **STEP)
    found = weights_after(method, line(8.0, 4.0), retain_data=sample(1.0, 0), model_factory=lambda: line(-2.0, 2 / 3))
    p = 1 / (1 + math.exp(1.0))
    assert found == pytest.approx([0.5 + 0.1 * (1 - p), 1.5 - 0.1 * (1 - p)])


@pytest.mark.parametrize(("reset", "start"), [(True, 0.0), (False, 7.0)])
def test_reset_last(reset, start):
    """One block: anew, one step as in fine-tuning from (0, 0); kept, the same step from (7, 7), where p is ½ too."""
    method = ResetLast(blocks=1, reset=reset, train="last", **STEP)
    found = weights_after(method, line(7.0, 7.0), retain_data=sample(1.0, 0), model_factory=line)
    assert found == pytest.approx([start + 0.05, start - 0.05])


def test_l1_sparse():
    """The gradient (−½, ½) at (1, 1), and 0.2·sign(w) = (0.2, 0.2)."""
    method = L1Sparse(gamma=0.2, mode="eval", **STEP)
    found = weights_after(method, line(1.0, 1.0), retain_data=sample(1.0, 0))
    assert found == pytest.approx([1 + 0.05 - 0.02, 1 - 0.05 - 0.02])


def test_random_label():
    """Of two classes the wrong one of (2, class 1) is 0: 2·(−½, ½); then (1, class 0) from (0.1, −0.1)."""
    found = weights_after(RandomLabel(mode="eval", **STEP), forget_data=sample(2.0, 1), retain_data=sample(1.0, 0))
    step = 0.1 * (1 - 1 / (1 + math.exp(-0.2)))
    assert found == pytest.approx([0.1 + step, -0.1 - step])
