"""A model, importances and data for one test, in a few numbers that can be printed and pasted back."""

from collections.abc import Iterator, Sequence
from typing import Any, final

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from unlearnkit import CrossEntropy, EvaluationInputs, Importance, Objective, UnlearningInputs, trainable
from unlearnkit.testing.models import CLASSES, LAYERS, POSITIONS, SmallNet

Batch = tuple[Tensor, Tensor]


@final
@attrs.frozen(kw_only=True)
class LawCase:
    """Everything that a call of the framework needs.

    Attributes:
        layers: See `SmallNet`.
        embedding: See `SmallNet`.
        tied: See `SmallNet`.
        frozen: See `SmallNet`.
        training: See `SmallNet`.
        dtype: Of the model.
        forget: F_f: these values, over and over, starting elsewhere in each parameter.
        reference: F_r, likewise.
        samples: How many samples each set of data has.
        batch: How many of them are in a batch.
        seed: Of weights and data.

    Example:
        >>> law_case = LawCase(samples=3, batch=2)
        >>> [len(labels) for _, labels in law_case.data("forget")]
        [2, 1]
    """

    layers: tuple[str, ...] = ("linear",)
    embedding: bool = False
    tied: bool = False
    frozen: bool = False
    training: bool = True
    dtype: torch.dtype = torch.float32
    forget: tuple[float, ...] = (20.0, 0.0)
    reference: tuple[float, ...] = (1.0, 0.0, 3.0)
    samples: int = 4
    batch: int = 2
    seed: int = 0

    def model(self) -> SmallNet:
        """Build the model, with a stale gradient on every parameter that may have one.

        Returns:
            A new object each time, the same weights each time.
        """
        model = self.fresh(self.seed)
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.full_like(p, 0.25)
        return model

    def fresh(self, seed: int = 1) -> SmallNet:
        """Build an untrained model of the same kind.

        Args:
            seed: Of its weights.

        Returns:
            A new object.
        """
        return SmallNet(
            layers=self.layers,
            embedding=self.embedding,
            tied=self.tied,
            frozen=self.frozen,
            training=self.training,
            dtype=self.dtype,
            seed=seed,
        )

    def data(self, which: str) -> list[Batch]:
        """Make one set of data.

        Args:
            which: Its name: another name, other data.

        Returns:
            Batches of inputs (batch, 3) and labels (batch,).
        """
        generator = torch.Generator().manual_seed(self.seed * 1000 + sum(which.encode()))
        x = 0.01 + 3.98 * torch.rand(self.samples, POSITIONS, generator=generator, dtype=torch.float64)
        y = torch.randint(CLASSES, (self.samples,), generator=generator)
        return batched(x.to(self.dtype), y, self.batch)

    def importance(self, model: SmallNet, values: Sequence[float]) -> Importance:
        """Lay values over the parameters of a model.

        Args:
            model: Its trainable parameters get an importance.
            values: Repeated as often as needed.

        Returns:
            An importance of one term.
        """
        pattern, totals = torch.tensor(values), {}
        for start, (name, p) in enumerate(trainable(model).items()):
            places = (torch.arange(p.numel()) + start) % len(values)
            totals[name] = pattern[places].reshape(p.shape).to(torch.promote_types(p.dtype, torch.float32))
        return Importance(totals=totals, count=1)

    def unlearning_inputs(self, model: SmallNet, **changed: Any) -> UnlearningInputs:
        """Collect all that any method may declare as its need.

        Args:
            model: The model that will be edited.
            changed: Fields of `unlearnkit.UnlearningInputs` to replace.

        Returns:
            Importances, data and a model factory.
        """
        usual: dict[str, Any] = {
            "forget": self.importance(model, self.forget),
            "reference": self.importance(model, self.reference),
            "forget_data": self.data("forget"),
            "retain_data": self.data("retain"),
            "model_factory": self.fresh,
        }
        return UnlearningInputs(**{**usual, **changed})

    def evaluation_inputs(self, **changed: Any) -> EvaluationInputs:
        """Collect all that any metric may look at.

        Args:
            changed: Fields of `unlearnkit.EvaluationInputs` to replace.

        Returns:
            Three models and the four usual sets of data.
        """
        names = ("retain-train", "forget-train", "retain-test", "forget-test")
        usual: dict[str, Any] = {
            "model": self.model(),
            "splits": {name: self.data(name) for name in names},
            "original": self.fresh(self.seed + 1),
            "retrained": (self.fresh(self.seed + 2),),
        }
        return EvaluationInputs(**{**usual, **changed})


def batched(x: Tensor, y: Tensor, size: int) -> list[Batch]:
    """Cut samples into batches."""
    return list(zip(torch.split(x, size), torch.split(y, size), strict=True))


@final
@attrs.frozen(kw_only=True)
class Scaled(Objective):
    """Another objective, times a number.

    Attributes:
        factor: The number.
        objective: The other objective.
    """

    factor: float
    objective: Objective = attrs.field(factory=CrossEntropy)

    def losses(self, model: torch.nn.Module, batch: Any) -> Tensor:
        """Return the scaled loss of every sample; see `unlearnkit.Objective.losses`."""
        return self.factor * self.objective.losses(model, batch)


@final
class Broken:
    """Data that break off after the first batch: what a failing disk looks like to a method.

    Args:
        batches: What is yielded before the error: the first of them.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield one batch, then fail."""
        yield self._batches[0]
        raise OSError("the data broke off")


def models() -> st.SearchStrategy[SmallNet]:
    """Draw small networks: linear, convolution, normalisation, embedding, attention, dropout; tied and frozen.

    Returns:
        A strategy; it shrinks to one linear layer in float32.
    """
    return law_cases().map(LawCase.model)


@st.composite
def law_cases(
    draw: st.DrawFn, *, dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64), largest: int = 5
) -> LawCase:
    """Draw a model with importances and data."""
    values = st.lists(st.sampled_from((0.0, 1.0, 2.0, 20.0)) | st.floats(0, 100, width=16), min_size=1, max_size=8)
    return LawCase(
        layers=tuple(draw(st.lists(st.sampled_from(LAYERS), max_size=3))),
        embedding=draw(st.booleans()),
        tied=draw(st.booleans()),
        frozen=draw(st.booleans()),
        training=draw(st.booleans()),
        dtype=draw(st.sampled_from(list(dtypes))),
        forget=tuple(draw(values)),
        reference=tuple(draw(values)),
        samples=draw(st.integers(1, largest)),
        batch=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 9)),
    )
