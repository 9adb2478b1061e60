"""Accuracy after the weights are rounded to 8 and to 4 bits: does rounding undo the forgetting?"""

import copy
from functools import partial
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import ModelOutputs, Values, outputs_of
from unlearnkit.utils.errors import ConfigurationError

BITS = {"INT8": 8, "INT4": 4}


@final
@attrs.frozen(kw_only=True)
class Quantised(Metric):
    """Accuracy with weights s_c·round(w/s_c), s_c = max|w_c|/(2^(b−1) − 1): does rounding undo the forgetting?

    ``"INT8 SPLIT"`` and ``"INT4 SPLIT"`` on the forget set and on retained test data, and ``"float SPLIT"`` without
    rounding.
    """

    name: ClassVar[str] = "quantisation"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="Zhang et al. 2025 (Catastrophic Failure of LLM Unlearning via Quantization); Nagel et al. 2021",
        cost="two copies of each model, and a pass of each over two splits",
        trust="weights alone are rounded; where INT4 ruins retain accuracy, its forget accuracy says nothing",
    )

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)
        values: Values = {}

        def accuracy(split: str, name: str, model: nn.Module) -> float:
            known = outputs.of(model, split)  # first, so that a missing split is the reason
            if name == "float":
                return known.accuracy
            rounded = round_trip(model, bits=BITS[name])
            return outputs_of(rounded, inputs.splits[split], objective=inputs.objective).accuracy

        for split in ("forget-train", "retain-test"):
            for name in ("float", *BITS):
                values |= outputs.for_each_model(f"{name} {split}", partial(accuracy, split, name))
        return values


def quantised(weight: Tensor, *, bits: int, channel: int = 0) -> Tensor:
    """Round to s_c·round(w/s_c), s_c = max|w_c|/(2^(bits−1) − 1), for each slice c (Nagel et al. 2021, section 2.2)."""
    if not 2 <= bits <= 16:
        raise ConfigurationError(f"quantised: expected 2 to 16 bits, saw {bits!r}")
    w = weight.detach().double()
    largest = w.abs().amax(dim=[d for d in range(w.dim()) if d != channel], keepdim=True)
    scale = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    return ((w / scale).round() * scale).to(weight.dtype)


def round_trip(model: nn.Module, *, bits: int) -> nn.Module:
    """Copy a model with every weight of two or more dimensions rounded; biases, normalisation and buffers are kept."""
    rounded = copy.deepcopy(model)
    transposed = {id(m.weight) for m in rounded.modules() if isinstance(m, _ConvTransposeNd)}
    with torch.no_grad():
        for p in rounded.parameters():
            if p.dim() > 1 and p.is_floating_point() and p.numel():
                # A transposed convolution has its output channels in the second dimension.
                p.copy_(quantised(p, bits=bits, channel=1 if id(p) in transposed else 0))
    return rounded
