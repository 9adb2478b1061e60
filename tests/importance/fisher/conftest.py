"""What several files of tests of the engine set up."""

import pytest
import torch


@pytest.fixture
def exact_convolutions():
    """Torch rounds the convolutions of float32 to tf32 on CUDA unless it is told otherwise."""
    switch = torch.backends.cudnn.conv
    before, switch.fp32_precision = switch.fp32_precision, "ieee"
    yield
    switch.fp32_precision = before
