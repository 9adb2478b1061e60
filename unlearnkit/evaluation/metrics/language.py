"""Metrics of language models: perplexity, greedy completion, the true answer among others, and an attack on tokens."""

import abc
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, ClassVar, TypeVar, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import pick
from unlearnkit.evaluation.membership.attacks import MembershipAttack
from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import SPLITS, InapplicableError, ModelOutputs, Values, map_batches, mean
from unlearnkit.evaluation.per_sample import Floats, floats
from unlearnkit.models.language import CausalLanguageModel, TokenClassification
from unlearnkit.models.objective import IGNORED, Autocast, Objective, logits_of, without_autocast
from unlearnkit.utils.errors import MismatchError
from unlearnkit.utils.options import option

Splits = Callable[[str], Iterable[Any]]  # the batches of a split by its name
Named = Iterable[tuple[str, float]]  # numbers and their names
_Kind = TypeVar("_Kind", bound=TokenClassification)
_LARGEST = 700.0  # nats: e^700 is still a finite number
PARAPHRASED, WRONG = " paraphrased", " wrong"
_COST = "one pass of each model over each split"


@attrs.frozen(kw_only=True)
class LanguageMetric(Metric):
    """Measures each model on each split, those besides the usual four too; write `values`."""

    names: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def values(self, objective: Objective, model: nn.Module, batches: Splits, split: str) -> Named:
        """Measure one model on one split: each of the `names` and its number."""

    @final
    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)

        @cache  # each model is run once for all names
        def measured(model: nn.Module, split: str) -> dict[str, float]:
            return dict(self.values(inputs.objective, model, outputs.batches, split))

        found: Values = {}
        for split in [s for s in inputs.splits if not s.endswith((PARAPHRASED, WRONG))] or SPLITS:
            for name in self.names:
                label = f"{split} {name}".strip()
                found |= outputs.for_each_model(label, lambda m, s=split, n=name: measured(m, s)[n])  # type: ignore[misc]
        return found


@final
@attrs.frozen(kw_only=True)
class Perplexity(LanguageMetric):
    """exp(Σ −log p(token)/n) over the n predicted tokens of each split; of general text, it measures utility.

    Splits may have any name: ``{"neighbours": batches, "general text": batches}``.
    """

    name: ClassVar[str] = "perplexity"
    names: ClassVar[tuple[str, ...]] = ("",)
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=1.0,
        unit="equally likely tokens",
        source="Jelinek et al. 1977",
        cost=_COST,
        trust="a mean over tokens: one token with a tiny probability outweighs many that are right",
    )

    def values(self, objective: Objective, model: nn.Module, batches: Splits, split: str) -> Named:
        found = np.concatenate([each.log_p for each in predictions(model, batches(split), objective=objective)])
        yield "", float(np.exp(min(-found.mean(), _LARGEST)))


@final
@attrs.frozen(kw_only=True)
class Completion(LanguageMetric):
    """Greedy completion of each sample from its prompt: share that is exact, and mean ROUGE-L (F1 of token numbers).

    The prompt is all tokens before the first label that is not −100, at least one. The model's ``generate`` is called
    where it has one; other models are called once for each token.
    """

    name: ClassVar[str] = "completion"
    names: ClassVar[tuple[str, ...]] = ("exact", "ROUGE-L")
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="Carlini et al. 2021 (extraction); Lin 2004, ROUGE-L",
        cost="a greedy completion of each sample of each split by each model",
        trust="one prompt: what is not said here may be said after a paraphrase, or as the second guess",
    )

    prefix: int = option(0, at_least=0, doc="tokens that the prompt has at least: for passages without a prompt")

    def values(self, objective: Objective, model: nn.Module, batches: Splits, split: str) -> Named:
        pairs = completions(model, batches(split), objective=objective, prefix=self.prefix)
        yield "exact", mean(said == true for said, true in pairs)
        yield "ROUGE-L", mean(rouge_l(said, true) for said, true in pairs)


@final
@attrs.frozen(kw_only=True)
class AnswerProbability(LanguageMetric):
    """Mean of p(answer | prompt)^(1/length) on each split, and mean rank of its first token, 1 for the most likely."""

    name: ClassVar[str] = "answer-probability"
    names: ClassVar[tuple[str, ...]] = ("probability", "rank")
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        unit="fraction; rank",
        source="Maini et al. 2024 (TOFU), probability",
        cost=_COST,
        trust="the answer in these words: another wording may still be likely",
    )

    def values(self, objective: Objective, model: nn.Module, batches: Splits, split: str) -> Named:
        found = predictions(model, batches(split), objective=objective)
        yield "probability", mean(each.probability for each in found)
        yield "rank", mean(each.rank for each in found)


@final
@attrs.frozen(kw_only=True)
class TruthRatio(LanguageMetric):
    """Mean over samples of R = mean_j p(wrong answer j)^(1/length) / p(paraphrased answer)^(1/length).

    For a split S, ``"S paraphrased"`` holds the samples of S, in its order, with the answer in other words, and ``"S
    wrong"`` equally many wrong answers for each, one sample's after another's.
    """

    name: ClassVar[str] = "truth-ratio"
    names: ClassVar[tuple[str, ...]] = ("",)
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        unit="ratio",
        source="Maini et al. 2024 (TOFU), equation 1",
        cost="one pass of each model over the paraphrased and the wrong answers",
        trust="depends on the wrong answers; near 1 also where a model knows no words any more",
    )

    def values(self, objective: Objective, model: nn.Module, batches: Splits, split: str) -> Named:
        batches(split)  # first, so that a missing split is the reason
        true, wrong = (
            np.array([p.probability for p in _every_prediction(model, batches(split + kind), objective=objective)])
            for kind in (PARAPHRASED, WRONG)
        )
        if len(wrong) % len(true):
            raise MismatchError(
                f"metric 'truth-ratio': expected equally many wrong answers for each of {len(true)} samples of "
                f"{split + PARAPHRASED!r}, saw {len(wrong)} in {split + WRONG!r}"
            )
        ratios = wrong.reshape(len(true), -1).mean(axis=1) / np.maximum(true, np.finfo(np.float64).tiny)
        yield "", mean(ratios)


@final
@attrs.frozen(kw_only=True)
class MinK(MembershipAttack):
    """Mean log-probability of the least likely tokens of a text: forgotten against unseen text of the same kind.

    Members have fewer very unlikely tokens. Unseen text is ``"forget-test"``, or else ``"retain-test"``. ``share=1`` is
    the loss attack, on the loss per token.
    """

    name: ClassVar[str] = "min-k"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="Shi et al. 2024 (Detecting Pretraining Data), Min-K% Prob",
        cost="one pass of each model over two splits",
        trust="unseen text must be of the same kind: otherwise it finds topics and lengths, not membership",
    )

    share: float = option(0.2, symbol="k", above=0, at_most=1, doc="share of the tokens, the least likely ones")

    def scores(self, outputs: ModelOutputs, model: nn.Module) -> tuple[Floats, Floats]:
        unseen = "forget-test" if "forget-test" in outputs.splits else "retain-test"

        def score(split: str) -> Floats:
            found = predictions(model, outputs.batches(split), objective=outputs.objective)
            tokens = (np.sort(each.log_p) for each in found)
            return np.array([each[: max(1, int(self.share * len(each)))].mean() for each in tokens])

        return score("forget-train"), score(unseen)


@final
@attrs.frozen(kw_only=True, eq=False)
class Prediction:
    """What a model makes of one text: the log-probability of each token it predicts, and the rank of the first."""

    log_p: Floats
    rank: float

    @property
    def probability(self) -> float:
        """Probability of the text, normalised by its length."""
        return float(np.exp(self.log_p.mean()))


def predictions(model: nn.Module, batches: Iterable[Any], *, objective: Objective) -> list[Prediction]:
    """Run a language model over texts in eval mode; texts without a predicted token are left out."""
    language = _objective(objective, TokenClassification)  # type: ignore[type-abstract]

    def predict(batch: Any, _: int) -> list[Prediction]:
        labels = language.labels(batch)
        logits = (objective if isinstance(objective, Autocast) else language).logits(model, batch)
        found = []
        for scores, targets in zip(logits.transpose(1, 2), labels, strict=True):
            kept = targets != IGNORED
            if bool(kept.any()):
                true = targets[kept][:, None]
                log_p = scores[kept].double().log_softmax(1)
                own = log_p.gather(1, true)[:, 0]
                above, same = int((log_p[0] > own[0]).sum()), int((log_p[0] == own[0]).sum())
                rank = above + (1 + same) / 2  # the middle of those that are as likely
                found.append(Prediction(log_p=floats(own, what="log-probabilities", dimensions=1), rank=rank))
        return found

    return _some(each for part in map_batches(model, batches, predict) for each in part)


def _every_prediction(model: nn.Module, batches: Iterable[Any], *, objective: Objective) -> list[Prediction]:
    """Refuse texts without a predicted token, where the place of each text counts."""
    found = predictions(model, batches, objective=objective)
    language = _objective(objective, TokenClassification)  # type: ignore[type-abstract]
    texts = sum(len(language.labels(batch)) for batch in batches)
    if texts != len(found):
        raise MismatchError(
            f"metric 'truth-ratio': expected a predicted token in each of {texts} texts, saw none in "
            f"{texts - len(found)}: leave these answers and their samples out"
        )
    return found


def completions(
    model: nn.Module, batches: Iterable[Any], *, objective: Objective, prefix: int = 0
) -> list[tuple[list[int], list[int]]]:
    """Complete texts greedily; return the tokens that the model says and those of the text, for each."""
    language = _objective(objective, CausalLanguageModel)

    def complete(batch: Any, _: int) -> list[tuple[list[int], list[int]]]:
        tokens, labels = pick(batch, language.tokens, what="tokens"), language.labels(batch)
        mask = language.token_mask(batch)
        starts = torch.zeros(len(tokens)) if mask is None else mask.argmax(1)
        by_length: dict[int, list[tuple[int, Tensor, list[int]]]] = defaultdict(list)
        for number, (row, targets, start) in enumerate(zip(tokens, labels, starts.int().tolist(), strict=True)):
            places = (targets != IGNORED).nonzero()[:, 0] + 1  # of the token that is predicted
            places = places[places >= start + prefix]
            if len(places):
                first, last = int(places[0]), int(places[-1]) + 1
                prompt = row[start:first]  # without padding on the left
                by_length[len(prompt)].append((number, prompt, row[first:last].tolist()))
        found = {}
        for texts in by_length.values():
            numbers, prompts, true = zip(*texts, strict=True)
            said = greedy(model, torch.stack(prompts), max(map(len, true)), output=language.output).tolist()
            for number, words, answer in zip(numbers, said, true, strict=True):
                found[number] = _ended(words[: len(answer)], model), answer
        return [found[number] for number in sorted(found)]

    return _some(each for part in map_batches(model, batches, complete) for each in part)


def greedy(model: Any, prompts: Tensor, count: int, *, output: int | str = "auto") -> Tensor:
    """Continue prompts of one length, shape (batch, length), by the most likely tokens: shape (batch, count)."""
    if hasattr(model, "generate"):
        options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": count, "pad_token_id": 0}
        said: Tensor = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **options)
        return said[:, prompts.shape[1] :]
    for _ in range(count):
        logits = logits_of(model(prompts), output=output, model=model)
        prompts = torch.cat([prompts, logits[:, -1].argmax(1, keepdim=True)], dim=1)
    return prompts[:, -count:]


def _ended(words: list[int], model: Any) -> list[int]:
    """Cut a text behind the token with which the model ends it: in a batch, ``generate`` fills up what follows."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    known = ends if isinstance(ends, list) else [ends]
    return next((words[: place + 1] for place, word in enumerate(words) if word in known), words)


def rouge_l(said: list[int], true: list[int]) -> float:
    """Return 2·LCS/(m + n), LCS the longest common subsequence of two texts of m and n tokens.

    Source: Lin 2004 (ROUGE), section 3.1, with β = 1.

    Examples:
        >>> rouge_l([1, 2, 3, 4], [1, 3, 4, 5])
        0.75
    """
    lengths = [0] * (len(true) + 1)
    for one in said:
        before = lengths[:]
        for i, other in enumerate(true):
            lengths[i + 1] = before[i] + 1 if one == other else max(before[i + 1], lengths[i])
    return 2 * lengths[-1] / (len(said) + len(true))


def _objective(objective: Objective, kind: type[_Kind]) -> _Kind:
    plain = without_autocast(objective)
    if not isinstance(plain, kind):
        wanted = "CausalLanguageModel" if kind is CausalLanguageModel else "objective of a language model"
        raise InapplicableError(f"{objective.describe()} is no {wanted}: there is no text to predict")
    return plain


def _some(found: Iterable[Any]) -> list[Any]:
    texts = list(found)
    if not texts:
        raise InapplicableError("the split has no text with a predicted token")
    return texts
