"""Metrics of language models, on a model whose probabilities are written down."""

import math
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from unlearnkit import EvaluationInputs, MismatchError
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.metrics import language
from unlearnkit.evaluation.metrics.language import completions, greedy, rouge_l
from unlearnkit.models import CausalLanguageModel
from unlearnkit.models.objective import Autocast

OBJECTIVE = CausalLanguageModel(pass_mask=False)
CLASSES = [metrics.AnswerProbability, metrics.Completion, metrics.MinK, metrics.Perplexity, metrics.TruthRatio]
# Row t: the probabilities of the token that follows token t. The most likely ones are 0, 1, 2, 3, 0, 1, …
NEXT = [[0.1, 0.6, 0.2, 0.1], [0.2, 0.1, 0.5, 0.2], [0.1, 0.1, 0.1, 0.7], [0.4, 0.3, 0.2, 0.1]]


class Bigram(nn.Module):
    """The next token depends on the last one alone."""

    def __init__(self, table=NEXT):
        super().__init__()
        self.log_p = nn.Parameter(torch.tensor(table).log())

    def forward(self, input_ids):
        return self.log_p[input_ids]


def texts(*rows, prompt=0, left=False):
    """A batch of texts whose first tokens are a prompt."""
    length = max(map(len, rows))

    def padded(row, filling):
        more = [filling] * (length - len(row))
        return [*more, *row] if left else [*row, *more]

    labels = [[-100] * prompt + row[prompt:] for row in map(list, rows)]
    return {
        "input_ids": torch.tensor([padded(list(row), 0) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row), 0) for row in rows]),
        "labels": torch.tensor([padded(row, -100) for row in labels]),
    }


def evaluate(metric, *, model=None, objective=OBJECTIVE, original=None, retrained=(), **splits):
    named = {name.replace("_", "-"): batches for name, batches in splits.items()}
    model = model or Bigram()
    return metric.examine(
        EvaluationInputs(model=model, splits=named, objective=objective, original=original, retrained=retrained)
    )


def test_perplexity_weighs_every_token_the_same_and_knows_every_split():
    uniform = Bigram([[0.25] * 4] * 4)
    batches = [texts([0, 1, 2], [2, 3]), texts([3, 3])]
    found = evaluate(metrics.Perplexity(), forget_train=batches, neighbours=[texts([0, 1])], original=uniform)
    assert found["forget-train"].value == pytest.approx((0.6 * 0.5 * 0.7 * 0.1) ** (-1 / 4), rel=1e-6)
    assert found["neighbours"].value == pytest.approx(1 / 0.6, rel=1e-6)
    assert found["original neighbours"].value == pytest.approx(4, rel=1e-6)
    assert found["retrained neighbours"].reason == "no retrained model at hand"


def test_the_prompt_is_no_part_of_the_perplexity_and_retrained_models_are_averaged():
    models = [Bigram(), Bigram([[0.25] * 4] * 4)]
    found = evaluate(metrics.Perplexity(), forget_train=[texts([0, 0, 1], prompt=2)], retrained=models)
    assert found["forget-train"].value == pytest.approx(1 / 0.6, rel=1e-6)
    assert found["retrained forget-train"].value == pytest.approx((1 / 0.6 + 4) / 2, rel=1e-6)


def test_an_impossible_token_has_a_finite_perplexity():
    found = evaluate(metrics.Perplexity(), model=Bigram([[1.0, 1e-38]] * 2), it=[texts([0, 1])] * 2)
    assert 1e37 < found["it"].value < math.inf
    huge = Bigram()
    huge.log_p.data *= 1e4
    assert evaluate(metrics.Perplexity(), model=huge, it=[texts([0, 0])])["it"].value < math.inf


@pytest.mark.parametrize("left", [False, True])
def test_completion_is_exact_or_shares_a_subsequence(left):
    # After the prompt 0 1 the model says 2 3 0, after 3 0 it says 1 2 3.
    batch = texts([0, 1, 2, 3, 0], [3, 0, 2, 2, 3], [2, 3, 0], prompt=2, left=left)
    found = evaluate(metrics.Completion(), it=[batch, texts([1, 3], prompt=1)])
    assert found["it exact"].value == 0.5  # the first and the third
    assert found["it ROUGE-L"].value == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)  # 1 2 3 and 2 2 3 share 2 3
    pairs = completions(Bigram(), [batch], objective=OBJECTIVE)
    assert pairs == [([2, 3, 0], [2, 3, 0]), ([1, 2, 3], [2, 2, 3]), ([0], [0])]


@pytest.mark.parametrize(("prefix", "said"), [(0, [1, 2, 3]), (2, [3, 0])])
def test_a_text_without_a_prompt_is_completed_from_a_prefix(prefix, said):
    batch = texts([0, 2, 3, 0] if prefix else [0, 1, 2, 3])
    ((found, true),) = completions(Bigram(), [batch], objective=OBJECTIVE, prefix=prefix)
    assert (found, len(true)) == (said, len(said))


@pytest.mark.parametrize("left", [False, True])
def test_generate_of_hugging_face_says_what_single_passes_say(left):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    prompts = torch.randint(1, 11, (3, 4))

    class Plain(nn.Module):
        def forward(self, input_ids):
            return model(input_ids)

    assert torch.equal(greedy(model, prompts, 5), greedy(Plain(), prompts, 5))
    rows = [[*row.tolist(), 1, 2][i:] for i, row in enumerate(prompts)]
    batch = texts(*rows, prompt=2, left=left)
    pairs = completions(model, [batch], objective=CausalLanguageModel())
    for row, (said, _) in zip(rows, pairs, strict=True):
        assert said == greedy(Plain(), torch.tensor([row[:2]]), len(row) - 2)[0].tolist()


def test_rouge_l_by_trying_every_subsequence():
    def subsequences(words):
        return {tuple(words[i] for i in places) for n in range(9) for places in combinations(range(len(words)), n)}

    made = np.random.default_rng(0)
    for _ in range(30):
        one, other = (made.integers(0, 3, made.integers(1, 8)).tolist() for _ in range(2))
        longest = max(map(len, subsequences(one) & subsequences(other)))
        assert rouge_l(one, other) == pytest.approx(2 * longest / (len(one) + len(other)))


def test_the_probability_of_an_answer_is_normalised_by_its_length():
    batch = texts([3, 0, 1, 2], [0, 3], [3, 1], prompt=1)
    found = evaluate(metrics.AnswerProbability(), it=[batch])
    expected = [(0.4 * 0.6 * 0.5) ** (1 / 3), 0.1, 0.3]
    assert found["it probability"].value == pytest.approx(np.mean(expected), rel=1e-6)
    assert found["it rank"].value == pytest.approx((1 + 3.5 + 2) / 3)  # two are above 0.1, and another one is as likely


def test_a_model_that_prefers_no_word_gives_the_middle_rank():
    found = evaluate(metrics.AnswerProbability(), model=Bigram([[0.25] * 4] * 4), it=[texts([0, 1], prompt=1)])
    assert found["it rank"].value == 2.5  # of four


def test_the_truth_ratio_refuses_answers_without_a_predicted_word():
    right = [texts([0, 1], [1, 2], prompt=1)]
    splits = {"it": right, "it paraphrased": [texts([0, 1], [1], prompt=1)], "it wrong": right}
    with pytest.raises(MismatchError, match="expected a predicted token in each of 2 texts, saw none in 1"):
        evaluate(metrics.TruthRatio(), **splits)


def test_the_end_of_a_text_does_not_depend_on_the_batch():
    class Ending(nn.Module):
        """Ends the first text early, and fills up with 0 as ``generate`` does in a batch."""

        generation_config = SimpleNamespace(eos_token_id=3)

        def generate(self, input_ids, **_):
            words = torch.tensor([[3, 0, 0] if int(row[-1]) == 1 else [1, 2, 1] for row in input_ids])
            return torch.cat([input_ids, words], dim=1)

    rows = [[1, 3, 0, 0], [2, 1, 2, 1]]
    together = completions(Ending(), [texts(*rows, prompt=1)], objective=CausalLanguageModel())
    assert together == [([3], [3, 0, 0]), ([1, 2, 1], [1, 2, 1])]


def test_the_truth_ratio_compares_wrong_answers_with_the_paraphrase():
    splits = {
        "it": [texts([0, 1], [1, 2], prompt=1)],
        "it paraphrased": [texts([0, 2, 3], [1, 2], prompt=1)],
        "it wrong": [texts([0, 0], [0, 3], [1, 1], prompt=1), texts([1, 3, 0], prompt=1)],
    }
    found = evaluate(metrics.TruthRatio(), **splits)
    first = (0.1 + 0.1) / 2 / math.sqrt(0.2 * 0.7)
    second = (0.1 + math.sqrt(0.2 * 0.4)) / 2 / 0.5
    assert found["it"].value == pytest.approx((first + second) / 2, rel=1e-6)
    assert list(found) == ["it", "retrained it"]
    splits["it wrong"] = splits["it wrong"][:1]
    with pytest.raises(MismatchError, match=r"equally many wrong answers for each of 2 samples.* saw 3"):
        evaluate(metrics.TruthRatio(), **splits)
    del splits["it wrong"]
    assert evaluate(metrics.TruthRatio(), **splits)["it"].reason.startswith("there is no split 'it wrong'")


def random_texts(seed, count=20):
    made = torch.Generator().manual_seed(seed)
    return [texts(*torch.randint(0, 4, (count, 10), generator=made).tolist())]


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_min_k_takes_the_least_likely_tokens(share):
    forgotten, unseen = random_texts(0), random_texts(1)
    table = torch.rand(4, 4, generator=torch.Generator().manual_seed(2)).softmax(1)  # no two scores are the same
    model = Bigram(table.tolist())
    found = evaluate(metrics.MinK(share=share), model=model, forget_train=forgotten, forget_test=unseen)

    def score(row):
        log_p = sorted(math.log(table[a][b]) for a, b in pairwise(row))
        return np.mean(log_p[: int(share * 9)])

    scores = [score(row) for batch in (*forgotten, *unseen) for row in batch["input_ids"].tolist()]
    assert found["AUC"].value == pytest.approx(roc_auc_score([1] * 20 + [0] * 20, scores), abs=1e-2)
    assert "at least 100 non-members" in found["TPR at 1 % FPR"].reason


def test_min_k_finds_texts_that_the_model_knows_by_heart():
    known = [texts([0, 1, 2, 3, 0], [2, 3, 0, 1])]
    found = evaluate(metrics.MinK(), forget_train=known, retain_test=[texts([0, 0, 3], [2, 2, 1, 0])])
    assert found["AUC"].value == 1


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.name)
def test_missing_splits_and_other_objectives_give_reasons(cls):
    found = evaluate(cls())
    assert found
    assert all(m.reason.startswith(("there is no split", "no retrained")) for m in found.values())
    batch = (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    splits = {name: [batch] for name in ("forget_train", "retain_test", "forget_train paraphrased")}
    found = evaluate(cls(), objective=EvaluationInputs(model=nn.Identity(), splits={}).objective, **splits)
    reasons = [m.reason for name, m in found.items() if "retrained" not in name]
    assert all(("there is no text to predict" in reason) or ("no split" in reason) for reason in reasons), reasons
    assert any(reason.startswith("CrossEntropy(") for reason in reasons)
    empty = evaluate(cls(), forget_train=[texts([1], [2])], forget_test=[texts([1])])
    assert not any(m.value for m in empty.values())


def test_bfloat16_gives_nearly_the_same():
    found = evaluate(metrics.Perplexity(), objective=Autocast(objective=OBJECTIVE), it=random_texts(0))
    assert found["it"].value == pytest.approx(evaluate(metrics.Perplexity(), it=random_texts(0))["it"].value, rel=0.02)


def test_relearning_up_to_a_loss_needs_no_classes():
    forget = [texts([0, 1, 2, 3])]
    blank = Bigram([[0.25] * 4] * 4)
    metric = metrics.RelearnTime(until="loss", learning_rate=0.1, margin=0.1)
    found = evaluate(
        metric, model=blank, original=Bigram(), retrained=[Bigram([[0.97, 0.01, 0.01, 0.01]] * 4)], forget_train=forget
    )
    assert 1 < found["steps"].value < found["retrained steps"].value
    assert found["original steps"].value == 0
    by_accuracy = evaluate(metrics.RelearnTime(), original=blank, forget_train=forget)
    assert by_accuracy["steps"].reason == "the model does not predict one label per sample"


def test_the_loss_attack_names_the_one_for_texts():
    found = evaluate(metrics.LossAttack(), forget_train=random_texts(0), retain_test=random_texts(1))
    assert found["AUC"].reason == "the model does not predict one label per sample"
    assert {cls.name for cls in CLASSES} == {
        c.name
        for c in vars(language).values()
        if isinstance(c, type) and c.__module__ == language.__name__ and isinstance(getattr(c, "name", None), str)
    }
