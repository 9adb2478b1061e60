"""Objectives of language models: padding on either side, packed rows, and three kinds of model."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.models.test_causal_language_model import Gpt, batch, hugging_face, oracle
from unlearnkit import ConfigurationError, DiagonalFisher
from unlearnkit.models import CausalLanguageModel, CrossEntropy, MaskedLanguageModel, Seq2Seq, SequenceClassification
from unlearnkit.models.objective import Autocast

CAUSAL = CausalLanguageModel()
KINDS = ("gpt2", "llama")


def flushed_right(data):
    """The same texts with their padding on the left."""
    lengths = data["attention_mask"].sum(1)
    return {
        key: torch.stack([row.roll(int(len(row) - n)) for row, n in zip(values, lengths, strict=True)])
        for key, values in data.items()
    }


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_on_either_side_gives_the_same_losses(kind, attention):
    model, right = hugging_face(kind).double(), batch()
    model.set_attn_implementation(attention)
    left = flushed_right(right)
    assert not torch.equal(left["attention_mask"], right["attention_mask"])
    wanted = torch.stack([oracle(model, right, i) for i in range(4)])
    both = {key: torch.cat([left[key][:2], right[key][2:]]) for key in left}
    for data in (right, left, both):
        close(CAUSAL.losses(model, data), wanted)
    # What the positions of the padding do to the model, if they are not passed.
    shifted = model(left["input_ids"], attention_mask=left["attention_mask"]).logits
    assert kind == "llama" or not torch.allclose(shifted, model(**left, position_ids=positions(left)).logits)


def positions(data):
    return (data["attention_mask"].cumsum(1) - 1).clamp(min=0)


# GPT-2 looks its positions up by text only where it is given them, so that its texts are measured one at a time.
@pytest.mark.filterwarnings("ignore:GPT2LMHeadModel cannot be proven to keep its samples apart at embedding")
@pytest.mark.parametrize("kind", KINDS)
def test_importances_with_padding_on_the_left_are_those_of_one_text_at_a_time(kind):
    model, right = hugging_face(kind), batch()
    wanted = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in model.named_parameters()}
    double = copy.deepcopy(model).double()
    for i in range(4):
        grads = torch.autograd.grad(oracle(double, right, i), list(double.parameters()), allow_unused=True)
        for name, g in zip(wanted, grads, strict=True):
            wanted[name] += 0 if g is None else g.square()
    left = flushed_right(right)
    for batches in ([left], [right, left]):  # of one shape, with other calls
        found = DiagonalFisher().estimate(model, batches, objective=CAUSAL)
        for name, total in wanted.items():
            scale = float(total.abs().max()) + 1e-12
            torch.testing.assert_close(
                found.totals[name].double() / scale, len(batches) * total / scale, rtol=1e-4, atol=1e-5
            )


def test_a_model_without_position_ids_is_refused_padding_on_the_left():
    left = flushed_right(batch())
    with pytest.raises(ConfigurationError, match=r"saw padding on the left, which shifts the positions of Gpt: set"):
        CAUSAL.losses(Gpt(), left)
    with pytest.raises(ConfigurationError, match="padding on the left"):
        CausalLanguageModel(pass_mask=False).losses(hugging_face("gpt2"), left)


def test_a_model_that_passes_arguments_on_is_given_position_ids():
    class Wrapped(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, **named):
            return self.model(input_ids, **named)

    model, right = hugging_face("gpt2").double(), batch()
    close(CAUSAL.losses(Wrapped(model), flushed_right(right)), CAUSAL.losses(model, right))


def packed(**more):
    tokens = torch.arange(6)[None] % 5
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **more}


PACKED = {
    "position_ids that start again": packed(position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]])),
    r"a mask of shape \(1, 1, 6, 6\)": packed(attention_mask=torch.ones(1, 1, 6, 6)),
    "a mask that numbers the texts": packed(attention_mask=torch.tensor([[1, 1, 1, 2, 2, 2]])),
    "the field 'seq_lens'": packed(seq_lens=torch.tensor([[3, 3]])),
    "the field 'cu_seq_lens_q'": {"input_ids": torch.zeros(1, 6), "cu_seq_lens_q": torch.tensor([0, 3, 6])},
}


@pytest.mark.parametrize("seen", PACKED)
@pytest.mark.parametrize("objective", [CAUSAL, MaskedLanguageModel(), Seq2Seq()], ids=lambda one: type(one).__name__)
def test_packed_rows_are_refused(objective, seen):
    with pytest.raises(
        ConfigurationError, match=rf"one text in each row of a batch, saw {seen}.*: a row is one sample"
    ):
        objective.losses(Gpt(), PACKED[seen])


def test_a_mask_with_holes_is_refused_and_position_ids_that_count_on_are_not():
    with pytest.raises(ConfigurationError, match=r"saw zeros between tokens: .* set their labels to -100"):
        CAUSAL.losses(Gpt(), packed(attention_mask=torch.tensor([[1, 1, 0, 1, 1, 1]])))
    model, right = hugging_face("gpt2").double(), batch()
    left = flushed_right(right)
    own = positions(left).masked_fill(left["attention_mask"] == 0, 1)  # as transformers' generate numbers padding
    close(CAUSAL.losses(model, {**left, "position_ids": own}), CAUSAL.losses(model, right))


def test_further_inputs_go_by_name_or_by_a_mapping():
    model, data = hugging_face("gpt2").double(), batch()
    kinds = torch.ones_like(data["input_ids"])
    wanted = cross_entropy(
        model(**data, token_type_ids=kinds).logits[:1, :-1].transpose(1, 2), data["input_ids"][:1, 1:], reduction="sum"
    )
    for inputs, key in ((("token_type_ids",), "token_type_ids"), ({"token_type_ids": "kinds"}, "kinds")):
        objective = CausalLanguageModel(inputs=inputs)
        close(objective.losses(model, {**data, key: kinds})[0], wanted)
        assert hash(objective) == hash(CausalLanguageModel(inputs=inputs))
    with pytest.raises(ConfigurationError, match=r"several keys of inputs, saw 'kinds': write \('kinds',\)"):
        CausalLanguageModel(inputs="kinds")


def test_logits_are_0_and_predictions_not_counted_where_nothing_is_predicted():
    model, data = hugging_face("gpt2").double(), flushed_right(batch())
    logits, labels = CAUSAL.logits(model, data), CAUSAL.labels(data)
    assert logits.shape == (4, 11, 5)
    assert not logits.transpose(1, 2)[labels == -100].any()
    close(cross_entropy(logits, labels, reduction="none").sum(1), CAUSAL.losses(model, data))
    for objective in (CAUSAL, Autocast(objective=CAUSAL)):
        assert objective.predictions(data).tolist() == (data["attention_mask"].sum(1) - 1).tolist()
        assert torch.equal(objective.token_mask(data), data["attention_mask"])
    assert CrossEntropy().predictions((torch.zeros(2, 3), torch.tensor([1, -100]))).tolist() == [1, 0]
    assert CrossEntropy().predictions((torch.zeros(2, 3, 4), torch.zeros(2, 4).long())).tolist() == [4, 4]
    assert CrossEntropy(probabilities=True).predictions((0, torch.full((2, 3, 4), 0.25))).tolist() == [4, 4]


def bert(cls="BertForMaskedLM", **options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=6,
        **options,
    )
    return getattr(transformers, cls)(config).eval()


def test_masked_language_model():
    model, data = bert().double(), batch()
    hidden = torch.zeros_like(data["input_ids"], dtype=torch.bool)
    hidden[:, 1] = hidden[0, 3] = True
    data["labels"] = data["input_ids"].masked_fill(~hidden, -100)
    data["input_ids"] = data["input_ids"].masked_fill(hidden, 10)
    losses = MaskedLanguageModel().losses(model, data)
    for i, n in enumerate(data["attention_mask"].sum(1).tolist()):
        logits = torch.log_softmax(model(data["input_ids"][i : i + 1, :n]).logits[0], 1)
        close(losses[i], -sum(logits[t, data["labels"][i, t]] for t in range(n) if hidden[i, t]))
    left = flushed_right(data)
    with pytest.raises(ConfigurationError, match="saw padding on the left, which shifts the positions of BertForMaske"):
        MaskedLanguageModel().losses(model, left)
    named = MaskedLanguageModel(inputs=("position_ids",))
    close(named.losses(model, {**left, "position_ids": positions(left)}), losses)


@pytest.mark.parametrize("kind", ["T5", "Bart"])
def test_seq2seq(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "T5": {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
        "Bart": {
            "d_model": 8,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 12,
            "decoder_ffn_dim": 12,
            "max_position_embeddings": 12,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": None,
        },
    }[kind]
    config = getattr(transformers, f"{kind}Config")(vocab_size=11, pad_token_id=0, **sizes)
    model, data = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval().double(), batch()
    target = batch(length=4, seed=1)
    data["labels"] = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
    objective = Seq2Seq()
    losses = objective.losses(model, data)
    for i, n in enumerate(data["attention_mask"].sum(1).tolist()):
        labels = data["labels"][i : i + 1, : int(target["attention_mask"][i].sum())]
        one = model(input_ids=data["input_ids"][i : i + 1, :n], labels=labels)
        close(losses[i], one.loss * labels.shape[1])
    given = {**data, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(data["labels"])}
    close(objective.losses(model, given), losses)
    with pytest.raises(ConfigurationError, match="saw padding on the left"):
        objective.losses(model, {**flushed_right(data), "labels": data["labels"]})
    with pytest.raises(ConfigurationError, match="saw padding on the left"):
        objective.losses(model, {**data, "labels": data["labels"].flip(1)})
    with pytest.raises(ConfigurationError, match="expected decoder_input_ids in the batch, for Gpt cannot make them"):
        objective.losses(Gpt(), data)


def test_sequence_classification_is_cross_entropy_by_a_tokenizers_names():
    model, data = bert("BertForSequenceClassification", num_labels=3).double(), batch()
    data["labels"] = torch.tensor([0, 2, 1, 1])
    losses = SequenceClassification().losses(model, data)
    for i, n in enumerate(data["attention_mask"].sum(1).tolist()):
        close(losses[i], model(data["input_ids"][i : i + 1, :n], labels=data["labels"][i : i + 1]).loss)
    left = {**flushed_right({key: data[key] for key in ("input_ids", "attention_mask")}), "labels": data["labels"]}
    with pytest.raises(ConfigurationError, match="saw padding on the left"):
        SequenceClassification().losses(model, left)
    renamed = SequenceClassification(inputs={"input_ids": "tokens", "attention_mask": "mask"}, targets="y")
    close(
        renamed.losses(model, {"tokens": data["input_ids"], "mask": data["attention_mask"], "y": data["labels"]}),
        losses,
    )


@pytest.mark.parametrize(
    ("labels", "count", "named"),
    [
        (torch.tensor([0.5, 2.0, 1.5, -1.0]), 1, "SquaredError"),
        (torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]), 2, "BinaryCrossEntropy"),
    ],
)
def test_regression_and_several_labels_are_refused_by_name(labels, count, named):
    model = bert("BertForSequenceClassification", num_labels=count)
    with pytest.raises(ConfigurationError, match=rf"{named}\(\)"):
        SequenceClassification().losses(model, {**batch(), "labels": labels})


@pytest.mark.parametrize("make", [dict, "BatchEncoding"])
def test_batches_of_a_tokenizer_are_taken_as_they_are(make):
    data = batch()
    if make == "BatchEncoding":
        make = pytest.importorskip("transformers").BatchEncoding
    found = DiagonalFisher().estimate(hugging_face("gpt2"), [make(data)], objective=CAUSAL)
    assert found.samples == 4
