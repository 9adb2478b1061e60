"""The Triton kernel against the samples alone in float64, in Triton's interpreter: on a CPU, and small."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from unlearnkit.importance.fisher.engine.choice import Chooser
from unlearnkit.importance.fisher.engine.totals import Totals
from unlearnkit.importance.fisher.rules.conv_geometry import Geometry
from unlearnkit.importance.fisher.rules.conv_kernels import conv_kernels
from unlearnkit.importance.fisher.rules.outer_products import outer_kernels

ROOT = Path(__file__).parents[4]
IN_THE_INTERPRETER = """
import torch
from fisher_oracle import CONVOLVE, distance, squares_of_each
from unlearnkit.importance.fisher.engine.choice import Chooser
from unlearnkit.importance.fisher.rules.conv_geometry import Geometry
from unlearnkit.importance.fisher.rules.triton_squares import triton_convolution, triton_linear
from unlearnkit.importance.fisher.engine.kernel import Into
from unlearnkit.importance.fisher.engine.totals import Totals

def slot(w, memory=1 << 24):
    return Totals({"w": w}, double=False, memory=memory, chooser=Chooser()).slot("w")

def compare(kernel, w, expected):
    total = torch.zeros(kernel.shape)
    kernel.run(Into(squares=total))
    kernel.run(Into(squares=total))
    assert distance({"w": kernel.finish(total).reshape(w.shape)}, {"w": 2 * expected}) < 1e-5

g, a, w = torch.randn(5, 40, 70), torch.randn(40, 5, 66).transpose(0, 1), torch.zeros(70, 66)
squares = torch.einsum("nto,nti->noi", g.double(), a.double()).square().sum(0)
for memory in (1, 1 << 24):  # one share of the samples, and several
    compare(triton_linear(slot(w, memory), g, a), w, squares)

for dims, rows, stride, padding, dilation in ((1, 1, 2, 1, 1), (2, 1, 1, 1, 1), (2, 2, 2, 0, 2), (3, 1, 1, 1, 1)):
    each = lambda value: (value,) * dims
    x, w = torch.randn(3, rows, 5, *each(6)), torch.randn(7, 5, *each(3))
    y = CONVOLVE[dims](x.flatten(0, 1), w, None, each(stride), each(padding), each(dilation))
    g = torch.randn_like(y).unflatten(0, (3, rows))
    geometry = Geometry(
        kernel=each(3), stride=each(stride), padding=each((padding, padding)), dilation=each(dilation), groups=1
    )
    compare(triton_convolution(slot(w), g, x, geometry), w, squares_of_each(geometry, w, x, g))
print("equal")
"""


def test_equals_one_sample_at_a_time():
    pytest.importorskip("triton")
    path = os.pathsep.join([str(ROOT / "tests" / "support"), str(ROOT)])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_INTERPRETER], env=environment, capture_output=True, text=True, check=False
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of this Triton (3.6) cannot count with this NumPy (2.5)")
    assert done.stdout == "equal\n", done.stderr


def test_is_a_candidate_on_cuda_but_not_the_first():
    pytest.importorskip("triton")
    with FakeTensorMode():
        w, x = torch.empty(64, 64, 3, 3, device="cuda"), torch.empty(8, 1, 64, 8, 8, device="cuda")
        slot = Totals({"w": w}, double=False, memory=1 << 26, chooser=Chooser()).slot("w")
        geometry = Geometry(kernel=(3, 3), stride=(1, 1), padding=((1, 1),) * 2, dilation=(1, 1), groups=1)
        found = [k.name for k in conv_kernels(slot, x, x, geometry)]
        rows = [k.name for k in outer_kernels(slot, x[:, 0].flatten(2), x[:, 0].flatten(2))]
    assert "triton" in found[1:]
    assert "triton" in rows[1:]


def test_is_no_candidate_on_a_cpu():
    w, x = torch.empty(64, 64, 3, 3), torch.empty(8, 1, 64, 8, 8)
    slot = Totals({"w": w}, double=False, memory=1 << 26, chooser=Chooser()).slot("w")
    geometry = Geometry(kernel=(3, 3), stride=(1, 1), padding=((1, 1),) * 2, dilation=(1, 1), groups=1)
    assert "triton" not in [k.name for k in conv_kernels(slot, x, x, geometry)]
