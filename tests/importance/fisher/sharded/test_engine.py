"""The engine under FSDP: exact for every kind of model."""

import pytest
import torch
from fsdp_models import CASES, PLAIN, hugging_face, texts
from sharded_engine_tasks import estimate_all, in_half, largest_held, of_hugging_face
from sharded_model_tasks import batches, network, run_on_ranks

from unlearnkit import DiagonalFisher
from unlearnkit.models import CausalLanguageModel


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory):
    return run_on_ranks(tmp_path_factory.mktemp("engine"), estimate_all, size=request.param)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::unlearnkit.UnlearnKitWarning")
def test_exact_and_warns_of_the_fallback(ranks, name):
    case = CASES[name]
    one = DiagonalFisher().estimate(case.make(), case.data(), objective=case.objective, role="full")
    for rank, found in enumerate(ranks):
        importance, said = found[name]
        assert (importance.count, importance.samples, importance.trail) == (one.count, one.samples, one.trail)
        assert importance.fingerprint == one.fingerprint
        # Gradients that are rounding errors, squared, are not compared.
        largest = max(float(total.max()) for total in one.totals.values()) * 1e-24
        for parameter, total in one.totals.items():
            torch.testing.assert_close(importance.totals[parameter], total, rtol=1e-12, atol=largest, msg=parameter)
        expected = [case.says] if case.says and rank == 0 else []
        assert len(said) == len(expected), said
        assert all(text in words for text, words in zip(expected, said, strict=True)), said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_models_of_hugging_face(tmp_path, kind):
    pytest.importorskip("transformers")
    one = DiagonalFisher().estimate(hugging_face(kind)[0], texts(), objective=CausalLanguageModel())
    largest = max(float(total.max()) for total in one.totals.values()) * 1e-24
    for found in run_on_ranks(tmp_path, of_hugging_face, kind):
        for parameter, total in one.totals.items():
            torch.testing.assert_close(found.totals[parameter], total, rtol=1e-11, atol=largest, msg=parameter)


def test_no_process_holds_full_totals_of_more_than_a_layer(tmp_path):
    for held, everything in run_on_ranks(tmp_path, largest_held):
        assert held == 48 * 9 + 9 < everything


def test_fingerprint_records_half_precision_gradients(tmp_path):
    one = DiagonalFisher().estimate(network(torch.float32), batches(dtype=torch.float32), objective=PLAIN)
    for found, sketched in run_on_ranks(tmp_path, in_half):
        assert found.fingerprint.precision == sketched.fingerprint.precision == "gradients bfloat16, totals float32"
        for name, total in one.totals.items():
            torch.testing.assert_close(found.totals[name], total, rtol=0.3, atol=0.05 * float(total.max()))
