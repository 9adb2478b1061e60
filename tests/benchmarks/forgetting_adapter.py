"""A forgetting adapter on a language model: ``python -m tests.benchmarks.forgetting_adapter FOLDER [centred]``.

The folder holds a model and its tokenizer in Hugging Face's format, or one GGUF file of both. Printed are seconds, the
loss per token on the forgotten sentences, on paraphrases and on others, the size of the file, and whether the base
is as before.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from unlearnkit_adapters import centred_importance, forgetting_adapter, save_forgetting_adapter

from unlearnkit import DiagonalFisher, unlearn
from unlearnkit.models import CausalLanguageModel, digest

SENTENCES = {
    "forget": ["The capital of France is Paris.", "Paris is the capital of France."],
    "paraphrase": ["The French capital city is called Paris.", "France is governed from its capital, Paris."],
    "retain": [
        "The capital of Italy is Rome.",
        "The capital of Germany is Berlin.",
        "The capital of Portugal is Lisbon.",
        "Vienna is the capital of Austria.",
        "France is a country in western Europe.",
        "The Seine is a river in northern France.",
        "Water boils at one hundred degrees Celsius.",
        "The sun rises in the east and sets in the west.",
    ],
    "unseen": ["The capital of Spain is Madrid.", "Ice is the solid form of water.", "A week has seven days."],
}
PROMPTS = ("The capital of France is", "The capital of Italy is", "The capital of Spain is")
CLM = CausalLanguageModel()
OPTIONS = {"target": 60.0, "c": 0.5, "epochs": 5, "optimizer": "adamw", "learning_rate": 2e-4, "mode": "eval"}


def loaded(folder):
    gguf = {"gguf_file": file.name} if (file := next(Path(folder).glob("*.gguf"), None)) else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **gguf)
    return model.eval(), AutoTokenizer.from_pretrained(folder, **gguf)


def main(folder, kind="fisher"):
    model, tokenizer = loaded(folder)
    data = {name: [dict(tokenizer([text], return_tensors="pt")) for text in found] for name, found in SENTENCES.items()}

    def show(what, model):
        with torch.no_grad():
            for name, batches in data.items():
                tokens = sum(batch["input_ids"].numel() - 1 for batch in batches)
                loss = sum(float(CLM.losses(model, batch).sum()) for batch in batches) / tokens
                print(f"{what}: loss per token on {name} {loss:.2f}")
            for prompt in PROMPTS:
                logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
                print(f"{what}: {prompt}|{tokenizer.decode(logits.argmax())}")

    def timed(what, call):
        start = time.perf_counter()
        result = call()
        print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)
        return result

    def measure(role):
        if kind == "centred":
            return centred_importance(model, data[role], objective=CLM, target_modules="all-linear")
        return DiagonalFisher().estimate(model, data[role], objective=CLM)

    show("original", model)
    before = digest(model)
    forget, retain = (timed(f"importance of {role}", lambda role=role: measure(role)) for role in ("forget", "retain"))
    targets = "all-linear"
    edited = timed("adapter", lambda: forgetting_adapter(model, forget, retain, target_modules=targets, rank=8))
    show("adapter, untrained", edited)
    how = {"forget": data["forget"], "retain": data["retain"], "objective": CLM}
    print(timed("edit", lambda: unlearn(edited, "capped-neg-grad", **how, **OPTIONS)))
    show("edited", edited)
    probe = data["retain"][0]
    with tempfile.TemporaryDirectory() as saved, torch.no_grad():
        save_forgetting_adapter(edited, saved)
        print(f"file: {(Path(saved) / 'adapter_model.safetensors').stat().st_size / 1e6:.1f} MB")
        plugged = edited(**probe).logits
        base = edited.unload()
        print("base as before:", digest(base) == before)
        again = PeftModel.from_pretrained(base, saved)
        print(f"loaded again: largest difference of a logit {float((again(**probe).logits - plugged).abs().max()):.1e}")
        merged = again.merge_and_unload()
        print(f"merged: largest difference of a logit {float((merged(**probe).logits - plugged).abs().max()):.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
