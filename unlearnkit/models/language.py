"""Objectives of language models: a text is one sample, its loss the sum over its predicted tokens, in nats."""

import abc
from collections.abc import Mapping
from typing import Any, final

import attrs
from torch import Tensor, nn

from unlearnkit.data.batches import pick
from unlearnkit.models.objective import (
    IGNORED,
    Classification,
    CrossEntropy,
    Inputs,
    NamedInputs,
    input_names,
    logits_of,
    named_inputs,
    named_keys,
    upcast_half,
)
from unlearnkit.models.tokens import (
    left_padded,
    positions_from,
    positions_of,
    refuse_left_padding,
    refuse_packed,
    takes,
)
from unlearnkit.utils.errors import ConfigurationError

AUTO = "auto"


def SequenceClassification(  # noqa: N802 - named as the other objectives; its losses are those of CrossEntropy
    *, inputs: Inputs = ("input_ids", "attention_mask"), targets: int | str = "labels", output: int | str = "auto"
) -> CrossEntropy:
    """Return the objective of a model that predicts one class of a text: `CrossEntropy` with a tokenizer's names.

    Padding on the left is refused. A model of one output is refused with the
    name of the objective for regression, `SquaredError`, and several labels of 0 or 1 with that of
    `BinaryCrossEntropy`: both take the same arguments.

    Examples:
        >>> SequenceClassification(inputs=("input_ids", "attention_mask", "token_type_ids")).targets
        'labels'
    """
    return CrossEntropy(inputs=inputs, targets=targets, output=output)


@attrs.frozen(kw_only=True)
class TokenClassification(Classification):
    """A sum over tokens: subclasses say where the labels are and how the model is called."""

    tokens: int | str = "input_ids"
    mask: int | str = "attention_mask"
    inputs: NamedInputs = attrs.field(default=(), converter=named_keys)
    pass_mask: bool = True
    output: int | str = AUTO

    @abc.abstractmethod
    def labels(self, batch: Any) -> Tensor:
        """Return the token that each logit predicts, shape (batch, predictions); −100 for none."""

    @abc.abstractmethod
    def _logits(self, model: nn.Module, batch: Any, mask: Tensor | None) -> Tensor:
        """Return the logits, shape (batch, predictions, vocabulary)."""

    @final
    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of every text, 0 without a predicted token; see `Objective.losses`."""
        logits, labels = self._logits(model, batch, self._checked_mask(batch)), self.labels(batch)
        logits = upcast_half(logits.transpose(1, 2))
        return nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED).sum(1)

    @final
    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the logits, shape (batch, vocabulary, predictions), 0 where nothing is predicted.

        Two models then have the same class probabilities there.
        """
        logits, labels = self._logits(model, batch, self._checked_mask(batch)), self.labels(batch)
        return logits.masked_fill((labels == IGNORED)[:, :, None], 0).transpose(1, 2)

    @final
    def token_mask(self, batch: Any) -> Tensor | None:
        """Return the mask of the batch; see `Objective.token_mask`."""
        found: Tensor | None = pick(batch, self.mask, what="mask") if self.mask != "" else None
        return found

    def _checked_mask(self, batch: Any) -> Tensor | None:
        if isinstance(batch, Mapping) and self.mask not in batch:
            refuse_packed(batch, None)  # first, for a packed batch may lack a mask
        mask = self.token_mask(batch)
        refuse_packed(batch, mask)
        return mask

    def _call(self, model: nn.Module, batch: Any, mask: Tensor | None, **named: Any) -> Tensor:
        tokens = pick(batch, self.tokens, what="tokens")
        if mask is not None and self.pass_mask:
            named["attention_mask"] = mask
        named |= named_inputs(batch, self.inputs)
        return logits_of(model(tokens, **named), output=self.output, model=model)


def _shaped(logits: Tensor, tokens: Tensor) -> Tensor:
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        raise ConfigurationError(
            f"expected logits of shape (batch, length, vocabulary) for tokens {tuple(tokens.shape)}, saw "
            f"{tuple(logits.shape)}"
        )
    return logits


@final
@attrs.frozen(kw_only=True)
class CausalLanguageModel(TokenClassification):
    """Negative log-likelihood of a sequence: Σ_t −log p(token_{t+1} | tokens ≤ t), in nats, padding left out.

    A text is one sample, however long: the Fisher information squares the gradient of its whole log-likelihood. The
    model is called like those of Hugging Face, with the tokens and ``attention_mask``. With padding on the left it also
    gets ``position_ids`` that number the tokens from 0; a model that takes none is refused, and so are packed rows.

    Attributes:
        tokens: Position or key of the token numbers in a batch: int64, shape (batch, length).
        mask: Likewise of the mask, 1 for tokens and 0 for padding, same shape; "" when there is no padding.
        inputs: Keys of further inputs, which are passed by name, ``("token_type_ids",)``, say; or a mapping from the
            names of arguments to keys.
        labels: Position or key of labels that differ from the tokens (−100 is left out: a prompt, say); "" takes the
            tokens, ``"auto"`` the field ``labels`` of batches that have one.
        pass_mask: Whether the model takes the mask as ``attention_mask``.
        output: As in `CrossEntropy`.

    Examples:
        >>> import torch
        >>> model = nn.Embedding(3, 3)  # the next token depends on the last one alone
        >>> _ = nn.init.zeros_(model.weight)
        >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> batch = {"input_ids": torch.tensor([[0, 1, 2], [0, 1, 0]]), "attention_mask": mask}
        >>> CausalLanguageModel(pass_mask=False).losses(model, batch)  # two predictions, and one: ln 3 each
        tensor([2.1972, 1.0986], grad_fn=<SumBackward1>)
    """

    _labels: int | str = AUTO

    def labels(self, batch: Any) -> Tensor:
        """Return the next tokens, shape (batch, length − 1); −100 where there is none or it is left out."""
        auto = self._labels == AUTO
        where = ("labels" if isinstance(batch, Mapping) and "labels" in batch else "") if auto else self._labels
        labels: Tensor = pick(batch, self.tokens if where == "" else where, what="labels")
        mask = self.token_mask(batch)
        if mask is None:
            return labels[:, 1:]
        return labels[:, 1:].masked_fill((mask[:, 1:] == 0) | (mask[:, :-1] == 0), IGNORED)

    def _logits(self, model: nn.Module, batch: Any, mask: Tensor | None) -> Tensor:
        positions = positions_of(batch)
        shifted = positions is None and mask is not None and left_padded(mask)
        taken = (shifted or positions is not None) and takes(model, "position_ids")
        if shifted and mask is not None:
            if not (self.pass_mask and taken):
                refuse_left_padding(mask, who=type(model).__name__)
            positions = positions_from(mask)
        named = {"position_ids": positions} if taken else {}
        tokens = pick(batch, self.tokens, what="tokens")
        return _shaped(self._call(model, batch, mask, **named), tokens)[:, :-1]


@final
@attrs.frozen(kw_only=True)
class MaskedLanguageModel(TokenClassification):
    """Negative log-likelihood of the masked tokens of a text: Σ_t −log p(token_t | the masked text), in nats.

    Mask each text once, when the data set is made: an objective must give the same loss each time, and a collator that
    masks at random does not. The attributes are those of `CausalLanguageModel`; ``labels`` holds the masked tokens, and
    −100 elsewhere. Padding on the left is refused unless ``inputs`` has ``"position_ids"``.

    Examples:
        >>> import torch
        >>> model = nn.Embedding(3, 3)
        >>> _ = nn.init.zeros_(model.weight)
        >>> batch = {"input_ids": torch.tensor([[0, 1, 2]]), "labels": torch.tensor([[-100, 2, -100]])}
        >>> MaskedLanguageModel(mask="").losses(model, batch)
        tensor([1.0986], grad_fn=<SumBackward1>)
    """

    _labels: int | str = "labels"

    def labels(self, batch: Any) -> Tensor:
        """Return the masked tokens, shape (batch, length); −100 elsewhere."""
        found: Tensor = pick(batch, self._labels, what="labels")
        return found

    def _logits(self, model: nn.Module, batch: Any, mask: Tensor | None) -> Tensor:
        if mask is not None and "position_ids" not in input_names(self.inputs):
            refuse_left_padding(mask, who=type(model).__name__)
        return _shaped(self._call(model, batch, mask), self.labels(batch))


@final
@attrs.frozen(kw_only=True)
class Seq2Seq(TokenClassification):
    """Negative log-likelihood of a target text given an input text: Σ_t −log p(label_t | labels < t, input), in nats.

    The model's decoder gets ``decoder_input_ids`` of the batch where it has any, else what the model's
    ``prepare_decoder_input_ids_from_labels`` makes of the labels, as Hugging Face's do. The attributes are those of
    `CausalLanguageModel`; ``labels`` holds the target tokens, padded on the right with −100. Padding on the left is
    refused.
    """

    _labels: int | str = "labels"

    def labels(self, batch: Any) -> Tensor:
        """Return the target tokens, shape (batch, length of the target); −100 for padding."""
        found: Tensor = pick(batch, self._labels, what="labels")
        return found

    def _logits(self, model: nn.Module, batch: Any, mask: Tensor | None) -> Tensor:
        who, labels = type(model).__name__, self.labels(batch)
        if mask is not None:
            refuse_left_padding(mask, who=who)
        named = {key: batch[key] for key in ("decoder_input_ids", "decoder_attention_mask") if key in batch}
        if "decoder_input_ids" not in named:
            refuse_packed({}, (labels != IGNORED).long())
            refuse_left_padding((labels != IGNORED).long(), who=who)
            shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
            if shift is None:
                raise ConfigurationError(
                    f"expected decoder_input_ids in the batch, for {who} cannot make them from labels, saw "
                    f"{sorted(map(str, batch))}: transformers.DataCollatorForSeq2Seq(tokenizer, model=model) adds them"
                )
            named["decoder_input_ids"] = shift(labels)
        return _shaped(self._call(model, batch, mask, **named), labels)
