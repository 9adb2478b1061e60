"""Tasks of the processes in tests of sharded models."""

import os
import traceback
import warnings
from pathlib import Path
from typing import final
from unittest.mock import patch

import attrs
import forked_process as forked
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from unlearnkit_estimators.sampled_fisher import SampledFisher
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.prune import Prune
from unlearnkit_methods.ssd import SelectiveSynapticDampening
from unlearnkit_methods.ssd_adaptive import AdaptiveSynapticDampening

from unlearnkit import (
    BatchedDiagonalFisher,
    BudgetError,
    CrossEntropy,
    DiagonalFisher,
    ElementwiseUnlearner,
    Objective,
    Pipeline,
    SketchedFisher,
    StoreError,
    UnlearningInputs,
    UnlearnKitError,
)
from unlearnkit.distributed.sharded_tensors import full_tensor, is_sharded, local
from unlearnkit.importance import estimate_groups
from unlearnkit.importance.sharded_file import load_sharded, save_sharded
from unlearnkit.importance.store.store import ImportanceStore
from unlearnkit.models.checkpoint import save_checkpoint
from unlearnkit.models.parameters import digest


def network(dtype=torch.float64):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 9),
        nn.LayerNorm(9),
        nn.Tanh(),
        nn.Linear(9, 4),
    ]
    return nn.Sequential(*layers).to(dtype).eval()


def batches(samples=11, size=4, dtype=torch.float64, seed=1):
    made = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 1, 6, 6, generator=made).to(dtype)
    labels = torch.randint(0, 4, (samples,), generator=made)
    labels[0] = 3
    return list(zip(images.split(size), labels.split(size), strict=True))


def fsdp(model, **options):
    """Shard every linear layer separately, and the rest together."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.Tanh(), nn.Linear(6, 4)).double().eval()


def tensor_parallel(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(model, mesh, {"1": ColwiseParallel(), "3": RowwiseParallel()})


ESTIMATORS = {
    "diagonal": DiagonalFisher(),
    "compensated": DiagonalFisher(accumulate="compensated"),
    "sketched": SketchedFisher(probes=2, seed=3),
    "batched": BatchedDiagonalFisher(),
    "notebook": BatchedDiagonalFisher(weights="equal", reduction="sum"),
}
"""Name to options; each must equal one process."""


def gathered(importance):
    """An importance with full tensors, on every rank."""
    return attrs.evolve(importance, totals={name: full_tensor(t) for name, t in importance.totals.items()})


def hybrid(model):
    """Hybrid sharding: pairs of processes hold copies of each shard."""
    return fsdp(
        model, mesh=init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("copies", "pieces"))
    )


def on_cuda(model):
    return fsdp(model.cuda())


MODELS = {
    "cuda": lambda: on_cuda(network()),
    "fsdp": lambda: fsdp(network()),
    "hybrid": lambda: hybrid(network()),
    "tensor-parallel": lambda: tensor_parallel(mlp()),
}


def estimates(folder, kind):
    """Estimate a sharded model with every estimator; return full totals, and state that must be unchanged."""
    model = MODELS[kind]()
    before, result = digest(model), {}
    for name, estimator in ESTIMATORS.items():
        found = estimator.estimate(model, batches(), objective=CrossEntropy(), role="full")
        assert all(is_sharded(t) for t in found.totals.values())
        assert all(p.grad is None for p in model.parameters())
        held = max(local(t).numel() for t in found.totals.values())
        result[name] = {"importance": gathered(found), "held": held, "before": before, "after": digest(model)}
    return result


METHODS = {
    "ssd": SelectiveSynapticDampening(alpha=1.2),
    "prune": Prune(tau=1e-3),
}


def importances(model):
    estimator = DiagonalFisher()
    forget = estimator.estimate(model, batches(3, seed=2), objective=CrossEntropy(), role="forget")
    return forget, estimator.estimate(model, batches(), objective=CrossEntropy(), role="retain")


def edits(folder, kind):
    """Edit a sharded model by every method; return report and weights of each, and of an edit that was refused."""
    result = {}
    for name, method in METHODS.items():
        model = MODELS[kind]()
        forget, reference = importances(model)
        with pytest.raises(BudgetError):
            method.unlearn(model, UnlearningInputs(forget=forget, reference=reference, max_fraction=1e-3))
        rolled_back = digest(model)
        report = Pipeline(unlearner=method).run(model, forget=forget, reference=reference)
        weights = {name: full_tensor(p) for name, p in model.named_parameters()}
        result[name] = {"report": report, "weights": weights, "rolled back": rolled_back, "after": digest(model)}
    return result


@final
@attrs.frozen(kw_only=True)
class Broken(ElementwiseUnlearner):
    """Sets the last weights, which one rank holds, to NaN."""

    name = "broken"

    def rule(self, theta, forget, reference):
        del forget, reference
        return theta * (torch.nan if dist.get_rank() == 1 else 1)


def bad_labels():
    return [(images, labels + 1) for images, labels in batches()]


def gathers_anew(model):
    """Replace the gathered parameters of one layer, as an extension of FSDP might."""
    layer, unshard = model[6], type(model[6]).unshard

    def anew(self, *arguments):
        unshard(self, *arguments)
        self._parameters["bias"] = nn.Parameter(self._parameters["bias"].detach().clone())

    with patch.object(type(layer), "unshard", anew):
        DiagonalFisher().estimate(model, batches(), objective=CrossEntropy())


def refusals(folder, case):
    """Return the errors of unsupported work on shards, and of failures of one rank."""
    model, said = fsdp(network()), {}
    forget, reference = importances(model)
    inputs = UnlearningInputs(forget=forget, reference=reference, forget_data=batches(3), retain_data=batches())
    before = digest(model)

    def collect(name, act):
        try:
            act()
        except (UnlearnKitError, RuntimeError) as error:
            said[name] = f"{type(error).__name__}: {error}"
        assert digest(model) == before

    collect("percentile", lambda: AdaptiveSynapticDampening().unlearn(model, inputs))
    collect("training", lambda: FineTune().unlearn(model, inputs))
    collect("estimator", lambda: SampledFisher().estimate(model, batches(), objective=CrossEntropy()))
    collect("one rank", lambda: Broken().unlearn(model, inputs))
    other = batches(seed=dist.get_rank())
    collect("other data", lambda: DiagonalFisher().estimate(model, other, objective=CrossEntropy()))
    collect("a file", lambda: forget.save(folder / "importance.safetensors"))
    store = ImportanceStore.create(folder / f"store {dist.get_rank()}")
    collect("a store", lambda: store.put("group", forget))
    collect("a checkpoint", lambda: save_checkpoint(model, folder / "model.safetensors"))
    collect("groups", lambda: estimate_groups(model, batches(), objective=CrossEntropy(), key=-1))
    collect("a bad batch", lambda: DiagonalFisher().estimate(model, bad_labels(), objective=CrossEntropy()))
    collect("new tensors", lambda: gathers_anew(model))
    in_one = UnlearningInputs(forget=gathered(forget), reference=gathered(reference))
    collect("whole", lambda: METHODS["ssd"].unlearn(model, in_one))
    collect("no part", lambda: forget - forget.merge(forget))
    damaged = attrs.evolve(
        forget, totals={n: t * (torch.nan if n == "6.bias" else 1) for n, t in forget.totals.items()}
    )
    collect("not finite", lambda: METHODS["ssd"].unlearn(model, attrs.evolve(inputs, forget=damaged)))
    return said


def saves(folder, case):
    """Save a sharded importance and read it again; also with a failure on rank 0."""
    model = fsdp(network())
    forget, _ = importances(model)
    save_sharded(forget, folder / "importance")
    found = load_sharded(folder / "importance", model)
    with pytest.raises(StoreError, match=r"cannot write"):
        save_sharded(forget, folder / "meet" / "no folder")  # there is a file of that name
    return gathered(found), gathered(forget)


def reads(folder, path):
    """Read the importance that other processes wrote, for a sharded model, and edit with it."""
    model = fsdp(network())
    forget = load_sharded(path, model)
    METHODS["prune"].unlearn(model, UnlearningInputs(forget=forget))
    return {"importance": gathered(forget), "after": digest(model)}


def damaged(folder, path):
    """Read a folder in which one file of several is damaged."""
    with pytest.raises(StoreError) as found:
        load_sharded(path, fsdp(network()))
    return str(found.value)


@final
class Deadly(Objective):
    """Ends the second process in its second batch."""

    def __init__(self):
        self.seen = 0

    def losses(self, model, batch):
        self.seen += 1
        if dist.get_rank() == 1 and self.seen > 12:  # after the probe of the first batch
            os._exit(9)
        return CrossEntropy().losses(model, batch)


@final
@attrs.frozen(kw_only=True)
class Last(ElementwiseUnlearner):
    """Ends the second process in the middle of an edit."""

    name = "last"

    def rule(self, theta, forget, reference):
        del forget, reference
        if dist.get_rank() == 1:
            os._exit(9)
        return theta / 2


def dies(folder, during):
    """Return the error of rank 0 when rank 1 is dead, and whether its shards are unchanged."""
    model = fsdp(network())
    forget, reference = importances(model)
    before = [local(p).clone() for p in model.parameters()]
    inputs = UnlearningInputs(forget=forget, reference=reference)
    act = {
        "an edit": lambda: Last().unlearn(model, inputs),
        "an estimate": lambda: DiagonalFisher().estimate(model, batches(80), objective=Deadly()),
    }
    with pytest.raises(UnlearnKitError) as found:
        act[during]()
    after = [local(p) for p in model.parameters()]
    torch.save((str(found.value), [torch.equal(a, b) for a, b in zip(before, after, strict=True)]), folder / "0.pt")
    os._exit(0)  # no rank is left to wait for


def algebra(folder, case):
    """Return sums, differences and means of sharded importances."""
    forget, reference = importances(fsdp(network()))
    both = forget + reference
    mean = both.mean()
    return {
        "sum": gathered(both),
        "rest": gathered(both - forget),
        "mean": {name: full_tensor(t) for name, t in mean.items()},
        "float32": gathered(both.to(dtype=torch.float32)),
    }


def enter(rank, size, folder, work, case):
    """Run ``work(folder, case)`` as one of several processes; write what it returns, or the text of an error."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    on_cuda = case == "cuda"
    if on_cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if on_cuda else "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size
    )
    try:
        torch.save(work(Path(folder), case), Path(folder) / f"{rank}.pt")
    except Exception as error:  # noqa: BLE001 - whatever it is, the test must hear of it
        (Path(folder) / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        os._exit(1)  # exit without waiting for the others
    dist.barrier()
    dist.destroy_process_group()


def run_on_ranks(folder, work, case="", *, size=2, alive=None):
    """Run work on every rank; return the value or error text of each, or only of the first ones."""
    forked.run_all(enter, [(rank, size, str(folder), work, case) for rank in range(size)])
    return [_written(folder, rank) for rank in range(alive or size)]


def _written(folder, rank):
    said = folder / f"{rank}.txt"
    return said.read_text() if said.exists() else torch.load(folder / f"{rank}.pt", weights_only=False)
