"""The objective of a causal language model: one loss per sequence."""

from typing import Any, final

import attrs
from torch import Tensor, nn

from unlearnkit.data.batches import pick
from unlearnkit.models.objective import Objective, logits_of
from unlearnkit.utils.errors import ConfigurationError

IGNORED = -100
"""Label of a position that does not count, as in torch and in Hugging Face's libraries."""


@final
@attrs.frozen(kw_only=True)
class CausalLanguageModel(Objective):
    """Negative log-likelihood of a sequence: Σ_t −log p(token_{t+1} | tokens ≤ t), in nats, padding left out.

    The unit is the sequence: a person's text is one sample, however long, and the Fisher information squares the
    gradient of its whole log-likelihood. The model is called as Hugging Face's are, with the tokens and
    ``attention_mask``; what it returns is found as by `CrossEntropy`.

    Attributes:
        tokens: Where the token numbers stand in a batch: int64, shape (batch, length).
        mask: Where the mask stands, 1 for tokens and 0 for padding, same shape; "" when there is no padding.
        labels: Where labels stand that differ from the tokens (−100 is left out: a prompt, say); "" takes the tokens.
        pass_mask: Whether the model takes the mask as ``attention_mask``.
        output: As in `CrossEntropy`.

    Example:
        >>> import torch
        >>> model = nn.Embedding(3, 3)  # the next token depends on the last one alone
        >>> _ = nn.init.zeros_(model.weight)
        >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> batch = {"input_ids": torch.tensor([[0, 1, 2], [0, 1, 0]]), "attention_mask": mask}
        >>> CausalLanguageModel(pass_mask=False).losses(model, batch)  # two predictions, and one: ln 3 each
        tensor([2.1972, 1.0986], grad_fn=<SumBackward1>)
    """

    tokens: int | str = "input_ids"
    mask: int | str = "attention_mask"
    labels: int | str = ""
    pass_mask: bool = True
    output: int | str = "auto"

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of every sequence; see `Objective.losses`.

        Args:
            model: Called with the tokens and, unless ``pass_mask`` is off, with ``attention_mask``.
            batch: See `CausalLanguageModel`.

        Returns:
            Shape (batch,), nats; 0 for a sequence without a predicted token.
        """
        tokens = pick(batch, self.tokens, what="tokens")
        mask = pick(batch, self.mask, what="mask") if self.mask != "" else None
        logits = self._logits(model, tokens, mask)
        labels = tokens if self.labels == "" else pick(batch, self.labels, what="labels")
        if mask is not None:
            labels = labels.masked_fill(mask == 0, IGNORED)
        loss = nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORED
        )
        return loss.sum(1)

    def _logits(self, model: nn.Module, tokens: Tensor, mask: Tensor | None) -> Tensor:
        extra = {"attention_mask": mask} if mask is not None and self.pass_mask else {}
        logits = logits_of(model(tokens, **extra), output=self.output, model=model)
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise ConfigurationError(
                f"expected logits of shape (batch, length, vocabulary) for tokens {tuple(tokens.shape)}, saw "
                f"{tuple(logits.shape)}"
            )
        return logits
