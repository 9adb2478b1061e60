"""Adapters of peft: importances and edits cover the LoRA weights alone, and the base stays as it is."""

import pytest
import torch
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import DiagonalFisher, Pipeline, unlearn
from unlearnkit.models import CausalLanguageModel, trainable
from unlearnkit.testing import per_sample_squares

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft
CLM = CausalLanguageModel()


def lora():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"]))
    for p in trainable(adapted).values():
        torch.nn.init.normal_(p, std=0.2)  # as after training; B starts as 0
    return adapted


def texts(*rows):
    tokens = torch.tensor(rows)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


FORGET, RETAIN = [texts([1, 2, 3, 4], [1, 2, 3, 5])], [texts([6, 7, 8, 9], [10, 11, 12, 13])]


def test_the_importance_is_that_of_the_adapters():
    model = lora()
    found = DiagonalFisher().estimate(model, FORGET, objective=CLM)
    assert list(found.totals) == list(trainable(model))
    assert all("lora_" in name for name in found.totals)
    for name, total in per_sample_squares(model, FORGET, CLM).items():
        torch.testing.assert_close(found.totals[name].double(), total, rtol=1e-4, atol=1e-7 * float(total.max()))


def by_pipeline(model):
    pipeline = Pipeline(SelectiveSynapticDampening(fraction=0.2), reference_role="retain")
    return pipeline.run(model, forget=FORGET, reference=RETAIN, objective=CLM)


def by_name(model):
    return unlearn(model, "ssd", forget=FORGET, retain=RETAIN, objective=CLM, fraction=0.2)


def by_training(model):
    return unlearn(model, "neg-grad-plus", forget=FORGET, retain=RETAIN, objective=CLM, beta=0.5)


@pytest.mark.parametrize("edit", [by_pipeline, by_name, by_training])
def test_an_edit_changes_the_adapters_and_can_be_unplugged(edit, tmp_path):
    model = lora()
    with torch.no_grad(), model.disable_adapter():
        unplugged = model(**FORGET[0]).logits
    with torch.no_grad():
        before = model(**FORGET[0]).logits
    report = edit(model)
    assert report.size == sum(p.numel() for p in trainable(model).values()) > report.changed * (edit is not by_training)
    assert report.changed > 0
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(**FORGET[0]).logits, unplugged)
    with torch.no_grad():
        after = model(**FORGET[0]).logits
    assert not torch.equal(after, before)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(lora().unload(), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**FORGET[0]).logits, after)
