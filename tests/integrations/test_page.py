"""The code of docs/how-to/integrations.md, run with the real libraries on small random models."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from unlearnkit import unlearn
from unlearnkit.models import CausalLanguageModel, digest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "integrations.md").read_text(encoding="utf-8")


def run_section(title, **names):
    """Run the first block of code of a section, and return its names."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    (block, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(compile(block, title, "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_hugging_face_trainer(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    rows = torch.randint(1, 23, (24, 7))

    def collate(samples):  # as DataCollatorForLanguageModeling(tokenizer, mlm=False)
        tokens = torch.stack([sample["input_ids"] for sample in samples])
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}

    trainer = transformers.Trainer(
        model=transformers.AutoModelForCausalLM.from_config(config),
        args=transformers.TrainingArguments("out", num_train_epochs=1, report_to=[], use_cpu=True, save_strategy="no"),
        train_dataset=[{"input_ids": row} for row in rows],
        eval_dataset=[{"input_ids": row} for row in rows[:4]],
        data_collator=collate,
    )
    trainer.train()
    before, loss = digest(trainer.model), trainer.evaluate()["eval_loss"]
    report = run_section("Hugging Face Trainer", trainer=trainer, forget_rows=[0, 1, 2, 3])["report"]
    assert report.changed > 0
    assert report.evidence[0].samples == 4
    assert report.evidence[1].samples == 20
    assert trainer.evaluate()["eval_loss"] > loss
    saved = transformers.AutoModelForCausalLM.from_pretrained("edited")
    assert digest(saved) == digest(trainer.model.cpu()) != before


@pytest.mark.filterwarnings("ignore")  # of Lightning, about its own dependencies
def test_lightning(tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Data(lightning.LightningDataModule):
        def setup(self, stage):
            assert stage == "fit"
            assert stage == "fit"
            self.train = TensorDataset(torch.randn(30, 4), torch.arange(30) % 3)

        def train_dataloader(self):
            return DataLoader(self.train, batch_size=8, shuffle=True)

    module, datamodule = Classifier(), Data()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.fit(module, datamodule)
    before = digest(module)
    report = run_section(
        "Lightning", module=module, datamodule=datamodule, trainer=trainer, forget_rows=range(0, 30, 3)
    )["report"]
    assert [one.samples for one in report.evidence] == [10, 20]
    assert report.changed > 0
    loaded = Classifier.load_from_checkpoint("edited.ckpt", weights_only=True)
    assert digest(loaded) == digest(module) != before


def test_a_device_map_of_one_device_is_edited(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = run_section("accelerate", folder=tmp_path)["model"]
    rows = torch.randint(23, (2, 3, 6), generator=torch.Generator().manual_seed(0))
    forget, retain = ([{"input_ids": row, "attention_mask": torch.ones_like(row)}] for row in rows)
    report = unlearn(model, "ssd", forget=forget, retain=retain, objective=CausalLanguageModel(), fraction=0.1)
    assert report.changed > 0


def test_a_tracker_in_python(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    data = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    report = run_section("Trackers", model=nn.Linear(3, 2), forget=data, retain=[(-data[0][0], data[0][1])])["report"]
    assert report.changed > 0
    assert len([*(tmp_path / "runs").iterdir()]) == 1
