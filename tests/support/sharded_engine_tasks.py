"""Tasks of the processes in tests of the engine on sharded models."""

import warnings
from unittest.mock import patch

import torch
from fsdp_models import CASES, HALF, PLAIN, hugging_face, texts
from sharded_model_tasks import ESTIMATORS, batches, fsdp, gathered, network
from torch.distributed.fsdp import fully_shard

from unlearnkit import DiagonalFisher, UnlearnKitWarning
from unlearnkit.importance.fisher.engine.totals import Totals
from unlearnkit.models import CausalLanguageModel


def estimate_all(folder, case):
    """Estimate each case; return full totals and warnings."""
    found = {}
    for name, one in CASES.items():
        model = one.shard(one.make())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            importance = DiagonalFisher().estimate(model, one.data(), objective=one.objective, role="full")
        found[name] = gathered(importance), [str(w.message) for w in said]
    return found


def in_half(folder, case):
    """Estimate in bfloat16 from weights in float32."""
    model = fsdp(network(torch.float32), mp_policy=HALF)
    data = batches(dtype=torch.float32)
    return gathered(DiagonalFisher().estimate(model, data, objective=PLAIN)), gathered(
        ESTIMATORS["sketched"].estimate(model, data, objective=PLAIN)
    )


def largest_held(folder, case):
    """Return the peak number of elements of full totals, and the number of all parameters' elements."""
    held, buffer = [], Totals.buffer

    def watched(self, *arguments):
        found = buffer(self, *arguments)
        held.append(sum(t.numel() for t in self.running()))
        return found

    with patch.object(Totals, "buffer", watched):
        model = fsdp(network())
        DiagonalFisher().estimate(model, batches(), objective=PLAIN)
    return max(held), sum(p.numel() for p in model.parameters())


def of_hugging_face(folder, kind):
    """Estimate a model of Hugging Face's, sharded by layer; a warning is an error."""
    model, layers = hugging_face(kind)
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    warnings.simplefilter("error", UnlearnKitWarning)
    return gathered(DiagonalFisher().estimate(model, texts(), objective=CausalLanguageModel()))
