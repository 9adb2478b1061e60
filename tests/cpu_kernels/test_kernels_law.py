"""The law that every kernel equals torch operations: the C++ kernels pass, wrong kernels fail."""

import pytest
import torch
from compiler import HAS_COMPILER
from unlearnkit_cpu_kernels import unlearnkit_register_kernels

from unlearnkit import ConfigurationError
from unlearnkit.importance import Kernel, KernelPlan
from unlearnkit.testing import LawError, check_kernel


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
@pytest.mark.parametrize("kernel", unlearnkit_register_kernels(), ids=lambda kernel: kernel.name)
def test_the_kernels_equal_torch(kernel):
    check_kernel(kernel)


class Linear(Kernel):
    """Correct for any number of rows, in torch operations; each wrong kernel below changes one thing."""

    name = "by-einsum"
    layer = "linear"

    def __init__(self, *, wrong=""):
        self.wrong = wrong

    def plan(self, operands):
        if self.wrong == "never":
            return None
        g, x = operands.g, operands.x

        def run(sums):
            per_sample = torch.einsum("nko,nki->noi", g, x)
            if self.wrong == "batch":
                per_sample = per_sample.sum(0, keepdim=True)
            if self.wrong == "nan":
                per_sample = per_sample.nan_to_num()
            if self.wrong == "overwrites":
                sums.squares.zero_()
            sums.squares.add_(per_sample.square().sum(0))
            if sums.absolute is not None:
                sums.absolute.add_((per_sample if self.wrong == "absolute" else per_sample.abs()).sum(0))
            if sums.signed is not None:
                sums.signed.add_((per_sample.abs() if self.wrong == "signed" else per_sample).sum(0))

        return KernelPlan(
            name="plain",
            shape=(g.shape[2], x.shape[2]),
            run=run,
            finish=(lambda t: t * 1.001) if self.wrong == "finish" else (lambda t: t),
            squares_only=self.wrong == "squares only",
        )


@pytest.mark.parametrize("wrong", ["", "squares only"])
def test_correct_kernel_passes(wrong):
    check_kernel(Linear(wrong=wrong))


@pytest.mark.parametrize("wrong", ["batch", "nan", "overwrites", "absolute", "signed", "finish"])
def test_wrong_kernel_is_detected(wrong):
    with pytest.raises(LawError, match=r"by-einsum \(.*rows"):
        check_kernel(Linear(wrong=wrong))


def test_kernel_that_takes_no_layer_fails_the_check():
    with pytest.raises(LawError, match="saw None for all"):
        check_kernel(Linear(wrong="never"))
    with pytest.raises(ConfigurationError, match="subclass of Kernel"):
        check_kernel(Linear)
