"""A forgetting adapter on a tiny Llama: FILA's start, an edit that can be unplugged, saved and merged."""

import copy
import re
from pathlib import Path

import attrs
import pytest
import torch

from unlearnkit import ConfigurationError, DiagonalFisher, Importance, MismatchError, UnsupportedModelError, unlearn
from unlearnkit.models import CausalLanguageModel, digest, trainable

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from unlearnkit_adapters import centred_importance, forgetting_adapter, save_forgetting_adapter  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fan_in_fan_out")  # of peft, not of ours

CLM = CausalLanguageModel()
TARGETS = ("q_proj", "v_proj", "down_proj")
SIZES = {"vocab_size": 29, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def texts(*rows):
    tokens = torch.tensor(rows)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


FORGET = [texts([1, 2, 3, 4], [1, 2, 3, 5])]
RETAIN = [texts([6, 7, 8, 9], [10, 11, 12, 13]), texts([14, 15, 16, 17])]


@pytest.fixture
def model():
    return llama()


def measured(model):
    return [DiagonalFisher().estimate(model, data, objective=CLM) for data in (FORGET, RETAIN)]


def adapted(model, **options):
    return forgetting_adapter(model, *measured(model), **{"target_modules": TARGETS, "rank": 4, **options})


def logits(model):
    with torch.no_grad():
        return torch.cat([model(**batch).logits.flatten(0, 1) for batch in (*FORGET, *RETAIN)])


def published(weight, forget, retain, rank):
    """The initialisation of the published code (kyj93790/VILA, forget.py), with an exact decomposition."""
    importance = (forget / (1e-5 + retain)).sum(1).sqrt()
    u, s, v = torch.linalg.svd(importance[:, None] * weight, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank] / importance[:, None]


def test_the_start_is_that_of_the_published_code(model):
    forget, retain = measured(model)
    original = copy.deepcopy(dict(model.named_parameters()))
    edited = forgetting_adapter(model, forget, retain, target_modules=TARGETS, rank=4)
    layers = {n: m for n, m in edited.get_base_model().named_modules() if hasattr(m, "lora_A")}
    assert len(layers) == 6
    for name, layer in layers.items():
        key = f"{name}.weight"
        expected = published(original[key].double(), forget.mean()[key].double(), retain.mean()[key].double(), 4)
        torch.testing.assert_close(layer.get_delta_weight("forget").double(), expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(layer.get_delta_weight("start"), -layer.get_delta_weight("forget"))


def test_it_changes_nothing_before_training_and_only_the_adapter_can_be_trained(model):
    before, random = logits(model), torch.get_rng_state()
    edited = adapted(model)
    torch.testing.assert_close(logits(edited), before, rtol=0, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), random)
    names = trainable(edited)
    assert len(names) == 12
    assert all(".forget." in name for name in names)


@pytest.fixture
def edited(model):
    edited = adapted(model)
    edited.original, edited.digest_before = logits(llama()), digest(llama())
    report = unlearn(
        edited, "neg-grad-plus", forget=FORGET, retain=RETAIN, objective=CLM, beta=0.5, epochs=3, learning_rate=0.05
    )
    assert report.size == sum(p.numel() for p in trainable(edited).values())
    assert report.changed > 0.9 * report.size
    return edited


def test_a_method_edits_only_the_adapter_and_unplugged_the_model_is_the_original(edited):
    plugged = logits(edited)
    assert (plugged - edited.original).abs().max() > 0.1
    with edited.disable_adapter():
        assert torch.equal(logits(edited), edited.original)
    assert torch.equal(logits(edited), plugged)
    base = edited.unload()
    assert digest(base) == edited.digest_before
    assert torch.equal(logits(base), edited.original)


def test_saved_it_is_an_ordinary_adapter_and_loaded_the_same_edit(edited, tmp_path):
    plugged, before, flags = logits(edited), digest(edited), [p.requires_grad for p in edited.parameters()]
    save_forgetting_adapter(edited, tmp_path)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert (digest(edited), [p.requires_grad for p in edited.parameters()]) == (before, flags)
    assert torch.equal(logits(edited), plugged)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path)
    assert loaded.peft_config["default"].r == 8
    torch.testing.assert_close(logits(loaded), plugged, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), plugged, rtol=0, atol=1e-5)


def test_merged_it_is_the_edited_model(edited):
    plugged = logits(edited)
    merged = edited.merge_and_unload()
    torch.testing.assert_close(logits(merged), plugged, rtol=0, atol=1e-5)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]


def test_an_elementwise_method_edits_it_too(model):
    edited = adapted(model)
    report = unlearn(edited, "ssd", forget=FORGET, retain=RETAIN, objective=CLM, fraction=0.2)
    assert 0 < report.changed < report.size == sum(p.numel() for p in trainable(edited).values())
    with edited.disable_adapter():
        assert torch.equal(logits(edited), logits(llama()))


def test_the_example_of_the_page(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "how-to" / "language-models.md"
    (code,) = (b for b in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) if "forgetting_adapter" in b)
    names = {"model": model, "forget": FORGET, "retain": RETAIN}
    exec(compile(code, str(page), "exec"), names)
    assert names["report"].changed > 0
    loaded = peft.PeftModel.from_pretrained(llama(), "edit")
    torch.testing.assert_close(logits(loaded), logits(names["adapted"]), rtol=0, atol=1e-5)


# VILA


def centred(model, data=FORGET, **options):
    return centred_importance(model, data, objective=CLM, **{"target_modules": TARGETS, "rank": 3, **options})


def test_the_centred_importance_is_the_product_of_the_variances(model):
    found = centred(model)
    reference = peft.get_peft_model(llama(), peft.LoraConfig(r=3, lora_alpha=3, target_modules=list(TARGETS)))
    drawn = torch.Generator().manual_seed(0)
    factors = trainable(reference)
    for p in factors.values():
        p.data = 0.05 * torch.randn(p.shape, generator=drawn)
    reference, factors = reference.double(), trainable(reference)
    rows = [texts(row) for row in FORGET[0]["input_ids"].tolist()]
    gradients = [torch.autograd.grad(CLM.losses(reference, row).sum(), list(factors.values())) for row in rows]
    variance = {name: torch.stack(g).var(0, correction=0) for name, *g in zip(factors, *gradients, strict=True)}
    for name, mean in found.mean().items():
        key = f"base_model.model.{name.removesuffix('weight')}lora_{{}}.default.weight"
        expected = variance[key.format("B")] @ variance[key.format("A")]
        torch.testing.assert_close(mean.double(), expected, rtol=2e-3, atol=1e-3 * float(expected.max()))


def test_measuring_it_leaves_the_model_as_it_was(model):
    model.lm_head.weight.requires_grad_(requires_grad=False)
    before, modules = digest(model), [id(m) for m in model.modules()]
    flags, random = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    centred(model)
    assert (digest(model), [id(m) for m in model.modules()]) == (before, modules)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), random)


def test_an_adapter_starts_from_centred_importances(model):
    forget, retain = centred(model), centred(model, RETAIN)
    start = forgetting_adapter(model, forget, retain, target_modules=TARGETS, rank=4)
    name, layer = next((n, m) for n, m in start.get_base_model().named_modules() if hasattr(m, "lora_A"))
    key = f"{name}.weight"
    expected = published(layer.base_layer.weight.double(), forget.mean()[key].double(), retain.mean()[key].double(), 4)
    torch.testing.assert_close(layer.get_delta_weight("forget").double(), expected, rtol=1e-3, atol=1e-5)


# What is refused


def refused(model, *importances, error, match, **options):
    before, modules = digest(model), [id(m) for m in model.modules()]
    with pytest.raises(error, match=match):
        forgetting_adapter(model, *importances, **{"target_modules": TARGETS, **options})
    assert (digest(model), [id(m) for m in model.modules()]) == (before, modules)
    assert all(p.requires_grad for p in model.parameters())


def test_importances_that_do_not_fit_are_refused(model):
    forget, retain = measured(model)
    refused(model, forget, centred(model, RETAIN), error=MismatchError, match="estimator")
    kept = {name: total for name, total in forget.totals.items() if "q_proj" not in name}
    less = attrs.evolve(forget, totals=kept)
    refused(model, less, retain, error=MismatchError, match=r"an importance of model.layers.0.self_attn.q_proj.weight")
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    refused(model, forget, retain, error=MismatchError, match="another model, or one that was edited since")


def test_embeddings_are_refused(model):
    refused(
        model, *measured(model), target_modules=["embed_tokens"], error=UnsupportedModelError, match="saw Embedding of"
    )


def test_an_iterator_is_refused(model):
    with pytest.raises(ConfigurationError, match="read twice"):
        centred(model, iter(FORGET))


def test_rows_without_importance_and_a_rank_above_that_of_the_weight(model):
    forget, retain = measured(model)
    totals = {name: torch.zeros_like(total) for name, total in forget.totals.items()}
    totals["model.layers.0.self_attn.q_proj.weight"][3] = 1.0
    edited = forgetting_adapter(
        model, attrs.evolve(forget, totals=totals), retain, target_modules=("q_proj", "v_proj"), rank=12
    )
    torch.testing.assert_close(logits(edited), logits(llama()), rtol=0, atol=1e-5)
    assert isinstance(forget, Importance)
    layer = edited.get_base_model().model.layers[0].self_attn.q_proj
    weight = layer.base_layer.weight[3]
    torch.testing.assert_close(layer.get_delta_weight("forget")[3], weight, rtol=1e-4, atol=1e-6)
    assert int(torch.linalg.matrix_rank(layer.get_delta_weight("forget"))) == 1


def test_gpt2_whose_weights_are_transposed():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=29, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    before = logits(model)
    forget, retain = measured(model)
    edited = forgetting_adapter(model, forget, retain, target_modules=["c_attn"], rank=4)
    torch.testing.assert_close(logits(edited), before, rtol=0, atol=1e-6)
    layer = edited.get_base_model().transformer.h[0].attn.c_attn
    key = "transformer.h.0.attn.c_attn.weight"
    weight, important, others = (
        t.double().T for t in (layer.base_layer.weight, forget.mean()[key], retain.mean()[key])
    )
    expected = published(weight, important, others, 4)
    torch.testing.assert_close(layer.get_delta_weight("forget").double().T, expected, rtol=1e-4, atol=1e-6)
