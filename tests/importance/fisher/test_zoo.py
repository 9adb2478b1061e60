"""A dozen of the smallest models of the zoo, each skipped where its library is not installed."""

import copy
import warnings

import pytest

from tests.benchmarks.zoo import error, oracle
from tests.benchmarks.zoo_models import Made, double, made
from unlearnkit import DiagonalFisher

SMALL = (
    "torchvision: vit",
    "torchvision: maxvit",
    "torchvision: shufflenet_v2_x0_5",
    "torchvision: mobilenet_v3_small",
    "transformers: bert",
    "transformers: deberta-v2",
    "transformers: t5",
    "transformers: mixtral",
    "transformers: gpt_oss",
    "transformers: mamba",
    "transformers: beit",
    "transformers: swinv2",
    "transformers: clip",
    "timm: test_vit_relpos",
    "timm: beit_base_patch16_224",
    "timm: swinv2_tiny_window8_256",
    "peft: Lora DoRA on llama",
    "peft: LoHa on bert",
    "peft: OFT on bert",
    "peft: PromptTuning on bert",
    "diffusers: DiTTransformer2DModel",
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", SMALL)
def test_models_of_other_libraries(name):
    library = name.partition(":")[0]
    pytest.importorskip(library)
    found = made(name)
    batch = double(found.draw(3))
    wide = Made(copy.deepcopy(found.model).double(), found.draw, found.objective)
    expected = oracle(wide, batch)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no rule for|.*cannot be proven")
        seen = DiagonalFisher().estimate(wide.model, [batch], objective=found.objective)
    assert error(dict(seen.totals), expected) < 1e-10
