"""Shared fixtures of the engine's tests."""

import pytest
import torch


@pytest.fixture
def exact_convolutions():
    """By default torch rounds float32 convolutions to tf32 on CUDA."""
    switch = torch.backends.cudnn.conv
    before, switch.fp32_precision = switch.fp32_precision, "ieee"
    yield
    switch.fp32_precision = before
