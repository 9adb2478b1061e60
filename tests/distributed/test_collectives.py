"""Evaluation, tuning and errors in 2 and 3 processes (gloo), against one process."""

import pytest
import torch
from rank_tasks import (
    bad_scores,
    batches,
    followed,
    from_configuration,
    network,
    one_fails,
    scores,
    sharded_scores,
    squares,
)
from run_on_ranks import run_on_ranks

from unlearnkit import NonFiniteError
from unlearnkit.distributed.collectives import (
    Ranks,
    Shared,
    all_gather,
    map_over_ranks,
    map_shared,
    own_device,
    raise_on_all_ranks,
)
from unlearnkit.evaluation import loss_and_accuracy

CONFIGURED = (
    "importance.batch_size=2000",  # one batch, of one rank: importance and edit are the same to the last bit
    "importance.options={accumulate='float64'}",
    "evaluation.batch_size=50",
    "tuning.method='ssd'",
    "tuning.fractions=[0.01, 0.1]",
    "tuning.rounds=1",
    "tuning.target='unseen'",
    "tuning.budget=0.2",
)
LESS = ("evaluation.metrics=['mia-loss']", "tuning.strengths=[0.0]", "tuning.reestimate='no'")
MORE = (
    "evaluation.metrics=['loss-and-accuracy', 'mia-loss', 'rmia', 'linear-probe', 'quantisation', 'relearn-time']",
    "evaluation.splits=['retain-train', 'forget-train', 'retain-test', 'forget-test']",
    "evaluation.retrained_seeds=[1, 2]",
    "evaluation.page=true",
)


@pytest.mark.parametrize(("size", "samples"), [(2, 23), (3, 7), pytest.param(3, 23, marks=pytest.mark.slow)])
def test_ranks_with_shared_batches_equal_one_process(tmp_path, size, samples):
    one = scores(samples, shared=False)
    for score, *arrays in run_on_ranks(tmp_path, scores, samples, size=size):
        assert score == one[0]
        for found, expected in zip(arrays, one[1:], strict=True):
            assert found.dtype == expected.dtype
            assert (found == expected).all()


def test_sharded_model_processes_every_batch_on_every_rank(tmp_path):
    one = scores(23, shared=False)  # five batches: split over the ranks, one would wait forever
    for score, *arrays in run_on_ranks(tmp_path, sharded_scores, 23):
        assert score.loss == pytest.approx(one[0].loss, rel=1e-12)
        assert score.samples == 23
        for found, expected in zip(arrays, one[1:], strict=True):
            torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-12, atol=1e-12)


def test_every_rank_raises_the_error_of_the_earliest_batch(tmp_path):
    with pytest.raises(NonFiniteError, match="in batch 2:") as alone:
        bad_scores(shared=False)
    for error in run_on_ranks(tmp_path, bad_scores):
        assert type(error) is NonFiniteError
        assert str(error) == str(alone.value)
        assert error.__notes__ == ["on rank 1 of 2"]


def test_an_error_on_one_rank_is_raised_on_every_rank(tmp_path):
    for error in run_on_ranks(tmp_path, one_fails, size=3):
        assert repr(error) == "KeyError('on its own')"
        assert error.__notes__ == ["on rank 1 of 3"]


def test_map_shared_processes_each_item_once_in_order(tmp_path):
    for found in run_on_ranks(tmp_path, squares, 5):
        assert found == [(0, 0, 0, 1), (1, 1, 1, 1), (2, 2, 0, 1), (3, 3, 1, 1), (4, 4, 0, 1)]


def test_model_that_differs_is_replaced_by_that_of_rank_0(tmp_path):
    for remarks, state, told in run_on_ranks(tmp_path, followed):
        assert remarks == ("rank 1 of 2 made another edit than rank 0, as CUDA may; all went on with that of rank 0",)
        assert told == [0, 1]
        for name, tensor in network().state_dict().items():
            assert torch.equal(state[name], tensor)


def figures(record):
    manifest = {k: v for k, v in record.manifest.items() if k not in {"finished", "processes", "config"}}
    tuning = {k: v for k, v in (record.tuning or {}).items() if k != "seconds"}
    measured = (record.before, record.after, record.metrics, record.not_applicable, record.views)
    return record.label, record.report.changed, record.report.model_after, measured, tuning, manifest


@pytest.mark.parametrize(("size", "settings"), [(2, LESS), pytest.param(3, MORE, marks=pytest.mark.slow)])
def test_run_and_tune_on_several_ranks_equal_one_process(digits_toml, tmp_path, size, settings):
    settings = (*CONFIGURED, *settings)
    one, one_tuned = from_configuration(digits_toml, *settings, f"output='{tmp_path}/one'")
    where = f"output='{tmp_path}/two'"
    for ran, tuned in run_on_ranks(tmp_path / "jobs", from_configuration, digits_toml, *settings, where, size=size):
        for mine, theirs in zip([*ran, tuned], [*one, one_tuned], strict=True):
            assert figures(mine) == figures(theirs)
            assert (mine.manifest["processes"], theirs.manifest["processes"]) == (size, 1)
    assert sorted(path.name for path in (tmp_path / "two").glob("[!.]*")) == ["prune", "ssd", "ssd-tuned"]
    assert (tmp_path / "two" / "ssd" / "report.html").exists() == (settings[-1] == MORE[-1])


def test_collectives_in_one_process():
    data = batches(7)
    assert loss_and_accuracy(network(), Shared(items=data)) == loss_and_accuracy(network(), data)
    assert len(Shared(items=data)) == len(data)
    assert all_gather("a") == ["a"]
    assert map_over_ranks("ab", str.upper) == ["A", "B"]
    numbered = map_shared(Shared(items="ab"), lambda own, numbers: zip(numbers, own, strict=False), model=network())
    assert numbered == [(0, "a"), (1, "b")]
    with pytest.raises(KeyError) as error, raise_on_all_ranks():
        raise KeyError
    assert not hasattr(error.value, "__notes__")
    assert Ranks.current() == Ranks()


def test_the_device_of_a_process(monkeypatch):
    assert own_device("cpu", local_rank=1) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("auto", local_rank=1) == own_device("cuda", local_rank=1) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="saw local rank 2 and 2 devices: start fewer processes"):
        own_device("cuda", local_rank=2)
    with pytest.raises(ValueError, match="expected 'cuda', 'cpu' or 'auto' with several processes, saw 'cuda:1'"):
        own_device("cuda:1", local_rank=0)
