"""The objective of a causal language model, and language models in the exact engine."""

import copy

import pytest
import torch
from torch import nn
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import DiagonalFisher, Pipeline
from unlearnkit.models import CausalLanguageModel
from unlearnkit.utils.errors import ConfigurationError

OBJECTIVE = CausalLanguageModel()


def batch(samples=4, length=6, vocabulary=11, seed=0):
    made = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, length + 1, (samples,), generator=made)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    tokens = torch.randint(0, vocabulary, (samples, length), generator=made) * mask
    return {"input_ids": tokens, "attention_mask": mask}


def oracle(model, data, i):
    """Σ −log softmax of the tokens that follow, of one sequence without its padding, in float64."""
    n = int(data["attention_mask"][i].sum())
    tokens = data["input_ids"][i : i + 1, :n]
    out = model(tokens, attention_mask=torch.ones_like(tokens))
    logits = (out if isinstance(out, torch.Tensor) else out.logits)[0]
    return -sum(torch.log_softmax(logits[t].double(), 0)[tokens[0, t + 1]] for t in range(n - 1))


class Gpt(nn.Module):
    """One block of causal attention with a tied embedding, with the interface of Hugging Face's models."""

    def __init__(self, width=8, vocabulary=11, length=6):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.1)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids, attention_mask=None):
        del attention_mask  # padding is at the end, and attention is causal
        n = input_ids.shape[1]
        x = self.embed(input_ids) + self.positions[:n]
        causal = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
        mixed, _ = self.attention(x, x, x, attn_mask=causal, need_weights=False)
        return self.head(self.norm(x + mixed))


def hugging_face(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=11, n_positions=6, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=6,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


def make(kind):
    torch.manual_seed(0)
    return Gpt().eval() if kind == "ours" else hugging_face(kind)


KINDS = ["ours", "gpt2", "llama"]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_each_sequence_without_its_padding(kind):
    model, data = make(kind).double(), batch()
    losses = OBJECTIVE.losses(model, data)
    for i in range(4):
        torch.testing.assert_close(losses[i].double(), oracle(model, data, i), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*cannot be proven to keep its samples apart")
def test_the_fisher_of_a_sequence_is_the_square_of_its_whole_gradient(kind):
    model, data = make(kind), batch()
    found = DiagonalFisher().estimate(model, [data], objective=OBJECTIVE)
    double = copy.deepcopy(model).double()
    want = {n: torch.zeros_like(p) for n, p in double.named_parameters()}
    for i in range(4):
        grads = torch.autograd.grad(oracle(double, data, i), list(double.parameters()), allow_unused=True)
        for name, g in zip(want, grads, strict=True):
            want[name] += 0 if g is None else g.square()
    assert list(found.totals) == list(want)  # the tied weight once
    for name, total in want.items():
        scale = float(total.abs().max()) + 1e-12
        torch.testing.assert_close(found.totals[name].double() / scale, total / scale, rtol=1e-4, atol=1e-5)


def test_custom_labels_exclude_a_prompt():
    model, data = make("ours").double(), batch()
    data["labels"] = data["input_ids"].clone()
    data["labels"][:, :3] = -100
    short = CausalLanguageModel(labels="labels").losses(model, data)
    assert bool((short <= OBJECTIVE.losses(model, data) + 1e-9).all())
    assert short[0].item() > 0


def test_a_sequence_of_one_token_has_no_loss():
    data = batch()
    data["attention_mask"][1, 1:] = 0
    assert OBJECTIVE.losses(make("ours"), data)[1].item() == 0


def test_logits_of_another_shape_are_refused():
    data = {"input_ids": torch.zeros(2, 3), "attention_mask": torch.ones(2, 3)}
    with pytest.raises(ConfigurationError, match=r"expected logits of shape \(batch, length, vocabulary\)"):
        CausalLanguageModel(pass_mask=False).losses(nn.Flatten(), data)


class Lora(nn.Module):
    """A frozen linear layer plus a trainable low-rank one."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_only_the_adapters_of_a_frozen_base_are_measured_and_edited():
    model = make("ours").requires_grad_(requires_grad=False)
    torch.manual_seed(1)
    head = nn.Linear(8, 11, bias=False)
    model.head = Lora(head)
    before = {n: p.clone() for n, p in model.named_parameters()}
    pipeline = Pipeline(unlearner=SelectiveSynapticDampening(alpha=1.0), reference_role="full")
    report = pipeline.run(model, forget=[batch(seed=1)], reference=[batch(seed=1), batch(seed=2)], objective=OBJECTIVE)
    assert {t.name for t in report.tensors} == {"head.down.weight", "head.up.weight"}
    assert report.changed > 0
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name not in {"head.down.weight", "head.up.weight"}), name
