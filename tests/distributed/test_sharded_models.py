"""Models sharded over 2 and 3 processes (gloo), against one process."""

import pytest
import torch
from sharded_model_tasks import (
    ESTIMATORS,
    METHODS,
    algebra,
    batches,
    dies,
    edits,
    estimates,
    importances,
    mlp,
    network,
    refusals,
    run_on_ranks,
)

from unlearnkit import CrossEntropy, UnlearningInputs
from unlearnkit.models.parameters import digest


def assert_same(found, one, *, rtol=1e-12):
    assert (found.count, found.samples, found.role, found.trail) == (one.count, one.samples, one.role, one.trail)
    assert found.fingerprint == one.fingerprint
    for name, total in one.totals.items():
        torch.testing.assert_close(found.totals[name], total, rtol=rtol, atol=1e-300)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def estimated(request, tmp_path_factory):
    return run_on_ranks(tmp_path_factory.mktemp("estimates"), estimates, "fsdp", size=request.param)


@pytest.fixture(scope="module", params=["fsdp", pytest.param("tensor-parallel", marks=pytest.mark.slow)])
def edited(request, tmp_path_factory):
    return WHOLE[request.param], run_on_ranks(tmp_path_factory.mktemp("edits"), edits, request.param)


WHOLE = {"fsdp": network, "tensor-parallel": mlp}


@pytest.mark.gpu
def test_all_cuda_devices_equal_one_process(tmp_path):
    """NCCL, one process for each device; with one device, the same code in one process."""
    size = torch.cuda.device_count()
    for found in run_on_ranks(tmp_path, estimates, "cuda", size=size):
        for name, estimator in ESTIMATORS.items():
            one = estimator.estimate(network(), batches(), objective=CrossEntropy(), role="full")
            for parameter, total in one.totals.items():
                torch.testing.assert_close(
                    found[name]["importance"].totals[parameter].cpu(), total, rtol=1e-9, atol=1e-18
                )


@pytest.mark.slow
def test_replicated_shards_are_counted_once(tmp_path):
    """Hybrid sharding: 2 × 2 processes, each shard in two of them."""
    model = network()
    forget, reference = importances(model)
    report = METHODS["ssd"].unlearn(model, UnlearningInputs(forget=forget, reference=reference))
    for name in ("estimates", "edits"):
        (tmp_path / name).mkdir()
    for found in run_on_ranks(tmp_path / "estimates", estimates, "hybrid", size=4):
        for name, estimator in ESTIMATORS.items():
            one = estimator.estimate(network(), batches(), objective=CrossEntropy(), role="full")
            assert_same(found[name]["importance"], one)
    for found in run_on_ranks(tmp_path / "edits", edits, "hybrid", size=4):
        assert found["ssd"]["report"].tensors == report.tensors


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_on_shards_equals_one_process(estimated, name):
    """Edits silently lost on wrapped or sharded models. (Row 12 of the defects: here the importances; 11 samples in
    batches of 4: the 3 samples of the last batch do not divide evenly over 2 ranks.)"""
    model = network()
    one = ESTIMATORS[name].estimate(model, batches(), objective=CrossEntropy(), role="full")
    for ranks in estimated:
        found = ranks[name]
        assert_same(found["importance"], one)
        assert found["before"] == found["after"] == digest(model)
        assert found["held"] < max(t.numel() for t in one.totals.values())


def test_tensor_parallel_model_equals_one_process(tmp_path):
    for found in run_on_ranks(tmp_path, estimates, "tensor-parallel"):
        for name, estimator in ESTIMATORS.items():
            one = estimator.estimate(mlp(), batches(), objective=CrossEntropy(), role="full")
            assert_same(found[name]["importance"], one)


@pytest.mark.parametrize("name", METHODS)
def test_edit_on_shards_equals_one_process(edited, name):
    """Edits silently lost on wrapped or sharded models. (Row 12 of the defects.)"""
    make, ranks = edited
    model = make()
    forget, reference = importances(model)
    before = digest(model)
    report = METHODS[name].unlearn(model, UnlearningInputs(forget=forget, reference=reference))
    assert 0 < report.changed < report.size
    for found in ranks:
        assert found[name]["rolled back"] == before
        assert found[name]["report"].tensors == report.tensors
        assert found[name]["report"].evidence[0] == report.evidence[0]
        for parameter, p in model.named_parameters():
            torch.testing.assert_close(found[name]["weights"][parameter], p.detach(), rtol=1e-12, atol=0)
        assert found[name]["report"].model_after == found[name]["after"]


def test_unsupported_work_on_sharded_models_is_refused_by_name(tmp_path):
    expected = {
        "percentile": "UnsupportedModelError: method 'ssd-adaptive': expected a model that is not sharded",
        "training": "UnsupportedModelError: method 'finetune': expected a model that is not sharded",
        "estimator": "UnsupportedModelError: estimator 'sampled-fisher': expected a model that is not sharded",
        "one rank": "UnlearnKitError: an edit in pieces (the model was put back): rank 1: NonFiniteError: method 'br",
        "other data": "MismatchError: expected the batches in the same order",
        "a file": "UnsupportedModelError",
        "a store": "UnsupportedModelError",
        "a checkpoint": "UnsupportedModelError: a checkpoint: expected tensors that are whole in this process",
        "groups": "UnsupportedModelError: several importances from one pass",
        "a bad batch": "ConfigurationError: expected labels from 0 to 3, one for each logit, saw another",
        "new tensors": "UnsupportedModelError: expected FSDP to gather a layer into the same tensors each time",
        "whole": "MismatchError: the forget importance does not fit",
        "no part": "MismatchError: Importance.subtract: 9 problems: (1) expected a part of 3 terms, saw 6",
        "not finite": "NonFiniteError: the forget importance: expected finite importances, saw NaN or infinity in 6.bi",
    }
    for said in run_on_ranks(tmp_path, refusals):
        assert list(said) == list(expected)
        for name, start in expected.items():
            assert said[name].startswith(start), said[name]


@pytest.mark.parametrize("during", ["an edit", "an estimate"])
def test_dead_rank_is_named_in_the_error(tmp_path, during):
    said, same = run_on_ranks(tmp_path, dies, during, alive=1)[0]
    assert said.startswith("rank 0: rank 1 is dead: killed, or ended by an error.")
    assert all(same)


def test_sums_and_differences_of_sharded_importances(tmp_path):
    forget, reference = importances(network())
    both = forget + reference
    for found in run_on_ranks(tmp_path, algebra):
        assert_same(found["sum"], both)
        assert_same(found["rest"], both - forget, rtol=1e-9)
        assert {t.dtype for t in found["float32"].totals.values()} == {torch.float32}
        for name, mean in both.mean().items():
            torch.testing.assert_close(found["mean"][name], mean, rtol=1e-12, atol=1e-300)
