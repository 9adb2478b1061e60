"""Tasks of the processes in tests of shared work."""

import os
import pickle
import signal
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from overwrite_and_kill import EVENTS
from torch import nn
from torch.distributed.fsdp import fully_shard

from unlearnkit import CrossEntropy, DiagonalFisher, SketchedFisher, UnlearnKitError
from unlearnkit.data import LabelledImages, loader
from unlearnkit.distributed.collectives import Ranks, Shared, all_gather, map_over_ranks, map_shared, raise_on_all_ranks
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.evaluation.metrics.features import features_of
from unlearnkit.evaluation.model_outputs import outputs_of
from unlearnkit.experiments import Comparison
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.job import aligned
from unlearnkit.experiments.run import run
from unlearnkit.experiments.tune import tune
from unlearnkit.importance.multi_process import estimate_together, fill
from unlearnkit.importance.store.store import ImportanceStore
from unlearnkit.models.parameters import digest
from unlearnkit.unlearning.report import Report


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).to(dtype).eval()


def batches(samples, dtype=torch.float64, seed=1):
    made = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 1, 6, 6, generator=made).to(dtype)
    labels = torch.randint(0, 4, (samples,), generator=made)
    labels[0] = 3
    return loader(LabelledImages(images=images, labels={"label": labels}, target="label"), batch_size=5)


def enter(rank, size, folder, task, *arguments):
    """Entry point of a process: do a task, and write its result or error to a file of the rank."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    try:
        came = task(*arguments)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        came = error
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(came))
    if not isinstance(came, UnlearnKitError) or "is dead" not in str(came):
        dist.barrier()
    dist.destroy_process_group()


def last():
    ranks = Ranks.current()
    return ranks.rank == ranks.size - 1


# --- importances ------------------------------------------------------------------------------------------------------


def estimate(samples, case=""):
    model, data = network(), batches(samples)
    if case == "another model" and last():
        with torch.no_grad():
            model[0].bias.add_(1)
    if case == "another loader" and last():
        data = batches(samples, seed=2)
    if case == "another length" and last():
        data = batches(samples - 1)
    if case == "another order" and last():
        data = loader(data.dataset, batch_size=5, shuffle=True, seed=3)
    if case == "shuffled alike":
        data = loader(data.dataset, batch_size=5, shuffle=True, seed=3)
    if case in {"another list", "another generator"}:
        data = list(batches(samples, seed=2) if last() else data)
        data = iter(data) if case == "another generator" else data
    if case == "a bad batch":
        data.dataset.images[6] = torch.nan  # in the second batch: rank 1's
    if case == "a list":
        data = list(data)
    if case == "a generator":
        data = iter(list(data))
    if case == "killed" and last():
        os.kill(os.getpid(), signal.SIGKILL)
    estimator = SketchedFisher() if case == "a sketch" else DiagonalFisher()
    return estimate_together(estimator, model, data, objective=CrossEntropy(), role="full")


def dying(data, rank, after):
    """Yield batches; after so many the process of a rank is killed."""
    for number, batch in enumerate(data):
        if number == after and Ranks.current().rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch


def die_at(number, folder):
    """Let this process be killed at the n-th event of the file system in a folder, counted from 1."""
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if event in EVENTS and any(str(folder) in str(a) for a in arguments):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def resume(folder, samples=43, kill=None, seed=1, kill_at=None):
    """Measure with a checkpoint after every batch of a rank.

    The process of a rank is killed before a batch (kill), or at an event of the file system in the folder (kill_at).
    """
    if kill_at is not None and Ranks.current().rank == kill_at[0]:
        die_at(kill_at[1], Path(folder))
    data = batches(samples, seed=seed)
    return estimate_together(
        DiagonalFisher(),
        network(),
        data if kill is None else dying(data, *kill),
        objective=CrossEntropy(),
        checkpoint=folder,
        every=1,
    )


def fill_store(folder, kill=None):
    """Put two groups into a store; the process of a rank is killed in the second."""
    one, two = batches(13), batches(43, seed=2)
    data = {"one": one, "two": two if kill is None else dying(two, *kill)}
    fill(
        ImportanceStore.open(folder),
        DiagonalFisher(),
        network(),
        data,
        objective=CrossEntropy(),
        every=1,
        together=True,
    )


# --- evaluation and tuning --------------------------------------------------------------------------------------------


def scores(samples=23, network=network, shared=True):
    """Every evaluation of a model; on one process with shared=False."""
    data = batches(samples)
    data = Shared(items=data) if shared else data
    model = network()
    said, features = outputs_of(model, data), features_of(model, data)
    return loss_and_accuracy(model, data), said.logits, said.labels, *features


def sharded_scores(samples):
    """The same for a sharded model."""
    return scores(samples, network=lambda: fully_shard(network()))


def bad_scores(shared=True):
    """The data of batches 2 and 4 (counted from 1) are damaged: rank 1 reads both."""
    data = batches(23)
    data.dataset.images[[6, 17]] = torch.nan
    return loss_and_accuracy(network(), Shared(items=data) if shared else data)


def one_fails():
    """Rank 1 fails in a block while the others wait for it in work that is shared."""
    with raise_on_all_ranks():
        if Ranks.current().rank == 1:
            raise KeyError("on its own")
        return map_over_ranks([1, 2, 3], str)


def squares(count):
    """Squares of numbers, with their positions and ranks; inside, each rank sees a world of one."""
    rank = Ranks.current().rank

    def work(own, numbers):
        return ((n, number, rank, Ranks.current().size) for n, number in zip(own, numbers, strict=False))

    return map_shared(Shared(items=range(count)), work, model=network())


def followed():
    """Rank 1 has another model: it gets that of rank 0, and the report records it."""
    ranks, model = Ranks.current(), network()
    if ranks.rank == 1:
        with torch.no_grad():
            model[0].weight.add_(1)
    report = aligned(Report(method="any", model_after=digest(model)), model)
    return report.remarks, model.state_dict(), all_gather(ranks.rank)


def compared(path):
    """Run `unlearnkit compare`; return the trials of this process, and the number of trials to do."""
    events = []
    comparison = Comparison.plan(load_config(path))
    share = comparison.share
    comparison.run(watch=events.append)
    return [event.name for event in events if event.key and event.kind != "started"], share


def from_configuration(path, *settings):
    """Run `unlearnkit run` and `unlearnkit tune`."""
    config = load_config(path, list(settings))
    ran = list(run(config))
    return ran, tune(config).record
