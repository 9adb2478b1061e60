"""Importances by 2 and 3 processes (gloo), against one process; processes that fail or die."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rank_tasks import batches, estimate, fill_store, network, resume
from run_on_ranks import run_on_ranks
from torch.utils.data import DataLoader, IterableDataset

from unlearnkit import CrossEntropy, DiagonalFisher, Importance, SketchedFisher, StoreError
from unlearnkit.distributed import Ranks, joined
from unlearnkit.importance import Fingerprint
from unlearnkit.importance.multi_process import _in_float64, estimate_together, forget_parts
from unlearnkit.importance.store.store import ImportanceStore
from unlearnkit.models.checkpoint import read_checkpoint

EVERY = "importance.every=1"


def alone(samples):
    return DiagonalFisher().estimate(network(), batches(samples), objective=CrossEntropy(), role="full")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("size", "samples", "case"),
    [
        (2, 23, ""),
        pytest.param(3, 23, "", marks=pytest.mark.slow),
        (3, 7, ""),
        (2, 23, "a generator"),
        (2, 23, "shuffled alike"),
    ],
)
def test_several_ranks_equal_one_to_1e_12(tmp_path, size, samples, case):
    """Per-sample importances under data-parallel: the first backward of each batch is averaged over ranks, the later
    ones are not (13 % error). (Row 11 of the defects; here with a last, smaller batch, and with a rank that has none.)
    """
    one = alone(samples)
    for found in run_on_ranks(tmp_path, estimate, samples, case, size=size):
        assert (found.count, found.samples, found.role) == (samples, samples, one.role)
        assert found.trail.sizes == one.trail.sizes
        assert found.fingerprint == one.fingerprint
        for name, total in one.totals.items():
            torch.testing.assert_close(found.totals[name], total, rtol=1e-12, atol=1e-300)


def test_how_float32_was_multiplied_is_kept():
    one = Fingerprint(precision="gradients float32, totals float32, products tf32, convolutions tf32")
    assert _in_float64(one).precision == "gradients float32, totals float64, products tf32, convolutions tf32"


def test_relative_error_of_a_sketch_by_two_ranks(tmp_path):
    """Both ranks use the same signs, so their errors are added: 13 samples in 3 batches, and 10 in 2."""
    parts = [SketchedFisher().relative_error(sizes) for sizes in ({5: 2, 3: 1}, {5: 2})]
    for found in run_on_ranks(tmp_path, estimate, 23, "a sketch", size=2):
        assert found.trail.sizes == {5: 4, 3: 1}
        assert found.relative_error == pytest.approx((13 * parts[0] + 10 * parts[1]) / 23)


def test_an_error_on_one_rank_is_raised_on_every_rank(tmp_path):
    for error in run_on_ranks(tmp_path, estimate, 23, "a bad batch"):
        assert str(error).startswith("an importance on several ranks: rank 1: NonFiniteError")


def test_models_that_differ_are_refused(tmp_path):
    for error in run_on_ranks(tmp_path, estimate, 23, "another model"):
        assert str(error).startswith("expected the model")
        assert "on every rank, saw rank 1" in str(error)


OTHERS = ["another loader", "another length", "another order", "another list", "another generator"]


@pytest.mark.parametrize("case", OTHERS)
def test_data_that_differ_are_refused_before_the_first_batch(tmp_path, case):
    for error in run_on_ranks(tmp_path, estimate, 23, case):
        assert str(error).startswith("expected the batches in the same order")
        assert "of rank 0 on every rank, saw rank 1" in str(error)
        assert not any("in batch" in note for note in getattr(error, "__notes__", []))


@pytest.mark.parametrize(("size", "gone"), [(2, 1), pytest.param(3, 0, marks=pytest.mark.slow)])
def test_dead_rank_is_named_and_the_next_job_resumes(tmp_path, size, gone):
    """Killed before its last batch; the other ranks' batches are in their checkpoints."""
    whole = run_on_ranks(tmp_path / "a", resume, tmp_path / "whole", size=size)
    last = len(batches(43)) - 1
    kill = (gone, last - (last - gone) % size)
    said = run_on_ranks(tmp_path / "b", resume, tmp_path / "cut", 43, kill, size=size)
    assert said[gone] is None  # killed
    for rank, error in enumerate(said):
        if rank != gone:
            # By the time a rank notices, others that noticed earlier may have exited too.
            assert re.match(rf"rank {rank}: ranks? [\d, ]*{gone}[\d, ]* (is|are) dead: killed, or", str(error))
    assert sorted(files(tmp_path / "cut")) == [f"rank-{rank}-of-{size}.part" for rank in range(size)]
    again = run_on_ranks(tmp_path / "c", resume, tmp_path / "cut", size=size)
    for found in again:
        assert (found.count, found.trail, found.fingerprint) == (43, whole[0].trail, whole[0].fingerprint)
        for name, total in whole[0].totals.items():
            assert torch.equal(found.totals[name], total)
    other = run_on_ranks(tmp_path / "d", resume, tmp_path / "cut", 43, None, 5, size=size)
    assert "was written by a pass over other data" in str(other[0])
    more = run_on_ranks(tmp_path / "e", resume, tmp_path / "cut", size=size + 1)
    assert f"by another number of processes: expected {size + 1}, saw rank-0-of-{size}.part" in str(more[0])
    for name, total in alone(43).totals.items():
        torch.testing.assert_close(again[0].totals[name], total, rtol=1e-12, atol=1e-300)


@pytest.mark.slow
@pytest.mark.parametrize("gone", [0, 1])
def test_nothing_is_lost_wherever_a_rank_is_killed(tmp_path, gone):
    """At each of about fifty file-system events: before, during and after each write."""
    whole = run_on_ranks(tmp_path / "whole-job", resume, tmp_path / "whole")[0]
    for number in range(1, 1000):
        job, folder = tmp_path / f"job-{number}", tmp_path / f"cut-{number}"
        said = run_on_ranks(job, resume, folder, 43, None, 1, (gone, number))
        if said[gone] is not None:
            break  # there are fewer events
        assert f"{gone} is dead" in str(said[1 - gone])
        for found in run_on_ranks(tmp_path / f"again-{number}", resume, folder):
            assert isinstance(found, Importance), (number, found)
            assert (found.count, found.trail) == (43, whole.trail)
            assert all(torch.equal(found.totals[name], total) for name, total in whole.totals.items())
    assert number > 20


def test_store_is_unchanged_when_a_rank_dies_while_filling(tmp_path):
    folder, whole = tmp_path / "cut", tmp_path / "whole"
    ImportanceStore.create(folder)
    ImportanceStore.create(whole)
    assert run_on_ranks(tmp_path / "a", fill_store, whole) == [None, None]
    error, killed = run_on_ranks(tmp_path / "b", fill_store, folder, (1, 3))
    assert killed is None
    assert "rank 1 is dead" in str(error)
    store = ImportanceStore.open(folder)
    assert store.keys == ("one",)  # complete, and nothing of the second
    before = files(folder)
    run_on_ranks(tmp_path / "c", fill_store, folder, (0, 2))  # killed once more: every byte of the store stays
    assert files(folder) == before
    assert run_on_ranks(tmp_path / "d", fill_store, folder) == [None, None]
    store.verify()
    for name, total in ImportanceStore.open(whole).total().totals.items():
        assert torch.equal(store.total().totals[name], total)
    assert not [path for path in folder.iterdir() if path.is_dir()]  # intermediate files are deleted


def measured(folder, **options):
    chosen = {"objective": CrossEntropy(), "checkpoint": folder, "every": 2, **options}
    return estimate_together(DiagonalFisher(), network(), batches(23), **chosen)


def test_one_process_resumes_and_another_number_is_refused(tmp_path):
    folder = tmp_path / "a" / "pass"
    found = measured(folder)
    for name, total in alone(23).totals.items():
        torch.testing.assert_close(found.totals[name], total, rtol=1e-12, atol=1e-300)
    assert [path.name for path in folder.iterdir()] == ["rank-0-of-1.part"]
    again = measured(folder)
    assert all(torch.equal(again.totals[name], total) for name, total in found.totals.items())
    (folder / "rank-0-of-1.part").rename(folder / "rank-0-of-3.part")
    with pytest.raises(StoreError, match=r"by another number of processes: expected 1, saw rank-0-of-3.part: start"):
        measured(folder)
    (folder / "rank-0-of-3.part").unlink()
    measured(folder)
    (folder / ".0123456789abcdef.tmp").touch()  # a temporary file of a killed process
    forget_parts(folder)
    assert not folder.exists()
    forget_parts(folder)  # deleted parts stay deleted
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write the checkpoint of an importance"):
        measured(tmp_path / "file" / "pass")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranks_process_every_batch_once(size):
    data = batches(23)
    whole = [batch[0] for batch in data]
    parts = [[b[0] for b in Ranks(rank=rank, size=size).share(data)] for rank in range(size)]
    assert sum(map(len, parts)) == len(whole) == 5
    for i, images in enumerate(whole):
        assert torch.equal(parts[i % size][i // size], images)


def test_ranks_process_every_batch_of_an_iterable_once():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(7))

    loader = DataLoader(Stream(), batch_size=2)
    parts = [[b.tolist() for b in Ranks(rank=rank, size=2).share(loader)] for rank in range(2)]
    assert parts == [[[0, 1], [4, 5]], [[2, 3], [6]]]


def test_one_process_uses_the_pass_of_the_estimator():
    with joined() as ranks:
        assert ranks == Ranks(rank=0, size=1)
        found = estimate_together(DiagonalFisher(), network(), batches(7), objective=CrossEntropy())
    for name, total in alone(7).totals.items():
        assert torch.equal(found.totals[name], total)


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def call(*arguments, launch=(*LAUNCH, "-m", "unlearnkit")):
    return subprocess.run([*launch, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_under_torchrun_gives_what_one_process_gives(digits_toml, tmp_path):
    """Results change with worker count, world size or library version and nobody can tell. (World size.)"""
    one, two = tmp_path / "one", tmp_path / "two"
    chosen = [digits_toml, "-q", "-m", "ssd", "--set", "importance.options={accumulate='float64'}"]
    quick = ["--set", "tuning.rounds=0", "--set", "tuning.budget=1.0"]
    for output, launch in ((one, (sys.executable, "-m", "unlearnkit")), (two, (*LAUNCH, "-m", "unlearnkit"))):
        done = call("run", *chosen, "--set", f"output='{output}'", launch=launch)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("ssd changed") == 1  # only rank 0 prints
        tuned = call("tune", *chosen, *quick, "--set", f"output='{output}'", launch=launch)
        assert tuned.returncode == 0, tuned.stderr
        assert tuned.stdout.count("edits tried; chosen") == 1
    (first, _), (second, _) = (read_checkpoint(folder / "ssd" / "model.safetensors") for folder in (one, two))
    reports, tunings = (
        [json.loads((folder / label / "report.json").read_text()) for folder in (one, two)]
        for label in ("ssd", "ssd-tuned")
    )
    assert reports[0]["changed"] == reports[1]["changed"] > 0
    assert [report["manifest"]["processes"] for report in reports] == [1, 2]
    assert reports[0]["before"] == reports[1]["before"]
    assert tunings[0]["tuning"]["chosen"] == tunings[1]["tuning"]["chosen"]
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-6, atol=0)


@pytest.mark.slow
def test_killed_rank_of_run_is_named_and_the_next_run_resumes(digits_toml, tmp_path):
    """Killed in the second pass; the restarted `run` gives the same bits as an uninterrupted one."""
    script = Path(__file__).parents[1] / "support" / "killed_rank.py"

    def arguments(name):
        settings = [f"output='{tmp_path}/{name}'", f"importance.checkpoint='{tmp_path}/{name}-passes'"]
        return ["run", digits_toml, "-q", "-m", "ssd", *(x for s in settings for x in ("--set", s)), "--set", EVERY]

    whole = call(*arguments("whole"))
    assert whole.returncode == 0, whole.stderr
    died = call(*arguments("cut"), launch=(*LAUNCH, script, "1", "5"))
    assert died.returncode != 0
    assert re.search(r"rank\s+: 1 .*\n\s+exitcode\s+: -9", died.stderr), died.stderr
    assert not (tmp_path / "cut" / "ssd").exists()
    written = sorted(str(p.relative_to(tmp_path / "cut-passes")) for p in (tmp_path / "cut-passes").rglob("*.part"))
    assert "run-full/rank-1-of-2.part" in written
    fewer = call(*arguments("cut"), launch=(sys.executable, "-m", "unlearnkit"))
    assert fewer.returncode == 2
    assert "by another number of processes: expected 1, saw rank-" in " ".join(fewer.stderr.split())
    again = call(*arguments("cut"))
    assert again.returncode == 0, again.stderr
    (first, _), (second, _) = (
        read_checkpoint(tmp_path / name / "ssd" / "model.safetensors") for name in ("whole", "cut")
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not list((tmp_path / "cut-passes").rglob("*"))  # the results are safe


# --- CUDA: not run on the machine that this was written on ------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a device for each process")
def test_two_gpus_equal_one_process(digits_toml, tmp_path):
    """NCCL: the same command on two devices, against one process on the CPU."""
    chosen = [digits_toml, "-q", "-m", "ssd", "--set", "importance.options={accumulate='float64'}"]
    gpus = call("run", *chosen, "--set", f"output='{tmp_path}/gpus'", "--set", "device='cuda'")
    assert gpus.returncode == 0, gpus.stderr
    cpu = call("run", *chosen, "--set", f"output='{tmp_path}/cpu'", launch=(sys.executable, "-m", "unlearnkit"))
    assert cpu.returncode == 0, cpu.stderr
    reports = [json.loads((tmp_path / name / "ssd" / "report.json").read_text()) for name in ("gpus", "cpu")]
    assert reports[0]["manifest"]["processes"] == 2
    assert reports[0]["changed"] == pytest.approx(reports[1]["changed"], rel=0.01)
    for split, scores in reports[1]["before"].items():
        assert reports[0]["before"][split]["loss"] == pytest.approx(scores["loss"], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a device for each process")
def test_dead_rank_on_a_gpu_is_named(digits_toml, tmp_path):
    script = Path(__file__).parents[1] / "support" / "killed_rank.py"
    settings = ("--set", "device='cuda'", "--set", f"importance.checkpoint='{tmp_path}/passes'", "--set", EVERY)
    died = call("run", digits_toml, "-q", "-m", "ssd", *settings, launch=(*LAUNCH, script, "1", "2"))
    assert died.returncode != 0
    assert re.search(r"rank\s+: 1 .*\n\s+exitcode\s+: -9", died.stderr), died.stderr


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="no CUDA device")
def test_more_processes_than_gpus_are_refused(digits_toml):
    many = torch.cuda.device_count() + 1
    launch = (*LAUNCH[:-1], str(many), "-m", "unlearnkit")
    refused = call("run", digits_toml, "-q", "--dry-run", "--set", "device='cuda'", launch=launch)
    assert refused.returncode != 0
    assert "expected a CUDA device for each process" in " ".join(refused.stderr.split())
