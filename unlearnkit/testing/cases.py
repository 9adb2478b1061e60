"""What laws are tried on: values that can be drawn, printed and pasted back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    CrossEntropy,
    ElementwiseUnlearner,
    EvaluationInputs,
    Importance,
    Need,
    Objective,
    UnlearningInputs,
)
from unlearnkit.models import trainable

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise ImportError(
        "unlearnkit.testing needs hypothesis, which is not installed: pip install 'unlearnkit[testing]'"
    ) from error

Batch = tuple[Tensor, Tensor]

WIDTH, POSITIONS, CLASSES = 2, 3, 4
LAYERS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "conv": lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1),
    "layer-norm": lambda: nn.LayerNorm(WIDTH),
    "batch-norm": lambda: nn.BatchNorm1d(WIDTH),
    "attention": lambda: nn.MultiheadAttention(WIDTH, 1, batch_first=True),
    "dropout": lambda: nn.Dropout(0.5),
}
"""What `SmallNet` can be built of, besides its stem and head."""


@final
class SmallNet(nn.Module):
    """A classifier of 3 numbers in [0, 4) into 4 classes, of at most some 100 weights.

    The layers are some of the keys of `LAYERS`, in order. With ``embedding`` the stem looks the numbers up in a table,
    instead of multiplying by them; ``tied`` shares weights, of the head with the embedding or of two linear layers;
    ``frozen`` freezes the stem. One seed gives the same weights; the global generators are not touched.

    Examples:
        >>> SmallNet(layers=("conv",)).eval()(torch.tensor([[0.0, 1.0, 2.0]])).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        *,
        layers: Sequence[str] = ("linear",),
        embedding: bool = False,
        tied: bool = False,
        frozen: bool = False,
        training: bool = True,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.stem: nn.Module = nn.Embedding(CLASSES, WIDTH) if embedding else nn.Linear(1, WIDTH)
            self.layers = nn.ModuleList(LAYERS[name]() for name in layers)
            self.head = nn.Linear(WIDTH, CLASSES)
            if tied:
                self._tie()
            with torch.no_grad():
                for p in self.parameters():
                    p.copy_(torch.randn(p.shape))
        self.stem.requires_grad_(not frozen)
        self.to(dtype).train(training)

    def _tie(self) -> None:
        if isinstance(self.stem, nn.Embedding):
            self.head.weight = self.stem.weight
        else:
            twins = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]
            twins[1].weight = twins[0].weight
            self.layers.extend(twins)

    def forward(self, x: Tensor) -> Tensor:
        """Classify inputs of shape (batch, 3), values in [0, 4): logits of shape (batch, 4)."""
        if isinstance(self.stem, nn.Embedding):
            h = self.stem(x.detach().long().clamp(0, CLASSES - 1))
        else:
            h = self.stem(x.unsqueeze(-1))
        for layer in self.layers:
            h = _apply(layer, h)
        logits: Tensor = self.head(h.mean(1))
        return logits


def _apply(layer: nn.Module, h: Tensor) -> Tensor:
    """Run one layer on shape (batch, positions, width)."""
    result: Tensor
    if isinstance(layer, nn.MultiheadAttention):
        result = h + layer(h, h, h)[0]
    elif isinstance(layer, nn.Conv1d | nn.BatchNorm1d):
        result = layer(h.transpose(1, 2)).transpose(1, 2)
    else:
        result = layer(h)
    return result.tanh() if isinstance(layer, nn.Linear | nn.Conv1d) else result


@final
@attrs.frozen(kw_only=True, eq=False)
class RuleInputs:
    """One tensor of weights and its two importances.

    Attributes:
        theta: θ, any shape and floating dtype.
        forget: F_f ≥ 0, same shape, float32 or float64.
        reference: F_r ≥ 0, likewise.
        extra: What a law needs besides: an order, a cut, an exponent, two values of an option.
    """

    theta: Tensor
    forget: Tensor
    reference: Tensor
    extra: Any = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "RuleInputs":
        """Apply a function to all three tensors."""
        return attrs.evolve(
            self, theta=function(self.theta), forget=function(self.forget), reference=function(self.reference)
        )

    def arguments(self, method: ElementwiseUnlearner) -> tuple[Tensor, Tensor, Tensor]:
        """Copy θ, F_f and F_r as the framework passes them to `ElementwiseUnlearner.edit`: F_r zeros if not needed."""
        needed = Need.REFERENCE_IMPORTANCE in method.requires()
        reference = self.reference.clone() if needed else torch.zeros_like(self.reference)
        return self.theta.clone(), self.forget.clone(), reference

    def wide(self, method: ElementwiseUnlearner) -> tuple[Tensor, ...]:
        """Copy θ, F_f and F_r as ``edit`` passes them to ``rule``: in one dtype, at least float32."""
        dtype = torch.promote_types(torch.promote_types(self.theta.dtype, torch.float32), self.forget.dtype)
        return tuple(t.to(dtype) for t in self.arguments(method))

    def ready(self, method: ElementwiseUnlearner) -> ElementwiseUnlearner:
        """Call ``prepare`` as the framework does; returns the object that edits."""
        forget, reference = (
            Importance(totals={"weight": total.clone()}, count=1) for total in (self.forget, self.reference)
        )
        return method.prepare(forget, reference if Need.REFERENCE_IMPORTANCE in method.requires() else None)

    def edited(self, method: ElementwiseUnlearner) -> Tensor:
        """Return θ'."""
        return self.ready(method).edit(*self.arguments(method))


@final
@attrs.frozen(kw_only=True)
class LawCase:
    """A `SmallNet`, importances and data for one test, in a few numbers.

    F_f and F_r are the values of ``forget`` and ``reference``, repeated; each parameter starts at another one. Each set
    of data has ``samples`` samples, ``batch`` of them in a batch. The seed is that of weights and data.

    Examples:
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
        """Build the model, with an old gradient on every trainable parameter."""
        model = self.fresh(self.seed)
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.full_like(p, 0.25)
        return model

    def fresh(self, seed: int = 1) -> SmallNet:
        """Build an untrained model of the same kind."""
        options = ("layers", "embedding", "tied", "frozen", "training", "dtype")
        return SmallNet(**{name: getattr(self, name) for name in options}, seed=seed)

    def data(self, which: str) -> list[Batch]:
        """Make the batches of one set of data: inputs (batch, 3) and labels (batch,); another name, other data."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + sum(which.encode()))
        x = 0.01 + 3.98 * torch.rand(self.samples, POSITIONS, generator=generator, dtype=torch.float64)
        y = torch.randint(CLASSES, (self.samples,), generator=generator)
        return batched(x.to(self.dtype), y, self.batch)

    def importance(self, model: SmallNet, values: Sequence[float], *, terms: int = 1) -> Importance:
        """Repeat values over the trainable parameters of a model: the means of an importance."""
        pattern, totals = torch.tensor(values), {}
        for start, (name, p) in enumerate(trainable(model).items()):
            places = (torch.arange(p.numel()) + start) % len(values)
            means = pattern[places].reshape(p.shape).to(torch.promote_types(p.dtype, torch.float32))
            totals[name] = terms * means
        return Importance(totals=totals, count=terms)

    def unlearning_inputs(self, model: SmallNet, **changed: Any) -> UnlearningInputs:
        """Collect all that any method may need; ``changed`` replaces fields of `unlearnkit.UnlearningInputs`."""
        usual: dict[str, Any] = {
            "forget": self.importance(model, self.forget, terms=2),
            "reference": self.importance(model, self.reference, terms=4),
            "forget_data": self.data("forget"),
            "retain_data": self.data("retain"),
            "model_factory": self.fresh,
        }
        return UnlearningInputs(**{**usual, **changed})

    def evaluation_inputs(self, **changed: Any) -> EvaluationInputs:
        """Collect all that any metric may look at; ``changed`` replaces fields of `unlearnkit.EvaluationInputs`."""
        names = ("retain-train", "forget-train", "retain-test", "forget-test")
        usual: dict[str, Any] = {
            "model": self.model(),
            "splits": {name: self.data(name) for name in names},
            "original": attrs.evolve(self, seed=self.seed + 1).model(),
            "retrained": (attrs.evolve(self, seed=self.seed + 2).model(),),
        }
        return EvaluationInputs(**{**usual, **changed})


def batched(x: Tensor, y: Tensor, size: int) -> list[Batch]:
    """Cut samples into batches."""
    return list(zip(torch.split(x, size), torch.split(y, size), strict=True))


@final
@attrs.frozen(kw_only=True)
class Scaled(Objective):
    """Another objective, times a number."""

    factor: float
    objective: Objective = attrs.field(factory=CrossEntropy)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the scaled loss of every sample; see `unlearnkit.Objective.losses`."""
        return self.factor * self.objective.losses(model, batch)


def broken(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Yield one batch, then fail, as a failing disk does."""
    yield batches[0]
    raise OSError("the data ended with an error")


def models() -> st.SearchStrategy[SmallNet]:
    """Draw small networks, tied and frozen ones too; shrinks to one linear layer in float32."""
    return law_cases().map(LawCase.model)


@st.composite
def law_cases(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    largest: int = 5,
    around: Sequence[float] = (),
) -> LawCase:
    """Draw a model with importances and data; ``around`` are further values of importances."""
    usual = st.sampled_from((0.0, 1.0, 2.0, 20.0, *around))
    # Several each, so that most cases have weights that matter more to either set, or to none.
    values = st.lists(usual | st.floats(0, 100, width=16), min_size=3, max_size=8)
    return LawCase(
        layers=tuple(draw(st.lists(st.sampled_from([*LAYERS, "batch-norm"]), max_size=3))),
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
