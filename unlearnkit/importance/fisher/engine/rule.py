"""The contract of a layer rule, and the registry that finds the rule of a function."""

import abc
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, ParamSpec, TypeVar, final

import attrs
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.models.norm_gradients import fix_norm_gradient
from unlearnkit.utils.errors import ConfigurationError

_P = ParamSpec("_P")
_R = TypeVar("_R")


@final
@attrs.frozen(kw_only=True, eq=False)
class Call:
    """One call of a parametric function, as a rule understands it.

    Attributes:
        weights: Role (``"weight"``, ``"bias"``) to the tensor that the model passed; None where it passed none.
        saved: What the per-sample gradient needs besides the output's gradient; rows as in the output.
        options: Anything else: strides, normalised shape, epsilon.
    """

    weights: Mapping[str, Tensor | None]
    saved: tuple[Tensor, ...] = ()
    options: Any = None

    def holding(self, saved: Iterable[Tensor]) -> "Call":
        """Return the same call with other tensors saved; made often, and so without asking which fields there are."""
        return Call(weights=self.weights, saved=tuple(saved), options=self.options)


class Rule(abc.ABC):
    """Says what the per-sample gradient of a parametric function is. Write `bind` and `per_sample`, and register it.

    The engine runs the function itself with its weights detached, so that torch's own backward gives the gradient of
    the input and the gradient of the weights is never formed; the rule adds the squares instead.

    Examples:
        >>> import torch
        >>> @visible
        ... def scale(x, factor):
        ...     return x * factor
        >>> class ScaleRule(Rule):
        ...     functions = (scale,)
        ...     def bind(self, x, factor):
        ...         return Call(weights={"factor": factor}, saved=(x,))
        ...     def per_sample(self, role, g, call):
        ...         return (g * call.saved[0]).flatten(1).sum(1)
        >>> register_rule(ScaleRule())
        >>> isinstance(rule_for(scale), ScaleRule)
        True
    """

    functions: ClassVar[tuple[Callable[..., Any], ...]]
    free_rows: ClassVar[bool] = False
    """Whether all leading dimensions are alike and the gradients of their rows add up, so that the batch may stand in
    dimension 1, and calls with one weight and no options may be joined to one call with more rows."""
    moves: ClassVar[bool] = False
    """Whether `bind` has moved the samples of what it saves to dimension 0, wherever they stand in the result."""
    converts: ClassVar[bool] = True
    """Whether ``g`` and the saved tensors are to come in the dtype of the totals."""
    fresh: ClassVar[bool] = False
    """Whether the functions always return new memory that nothing else keeps, be it behind a view."""

    splits_rows: ClassVar[bool] = False
    """Whether `apart` is written."""

    @abc.abstractmethod
    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """Name the arguments of one call.

        Args:
            args: As the model passed them.
            kwargs: As the model passed them.

        Returns:
            The call, or None when this rule does not cover it.
        """

    @abc.abstractmethod
    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return the gradient of one weight for each sample.

        Args:
            role: Which weight: a key of ``call.weights``.
            g: Gradient of the output, shape (n, k, …): the k rows of dimension 0 that belong to each of n samples.
            call: Its ``saved`` tensors have the same leading (n, k) as ``g`` and the dtype of the totals.

        Returns:
            Shape (n, *weight.shape), or anything that reshapes to it.
        """

    def forward(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the function; override it where torch's own way back does more than the gradient of the input needs.

        Arguments are those of a call that `bind` covers, with the weights detached.
        """
        y = function(*args, **kwargs)
        fix_norm_gradient(function, y)
        return y

    def add_squares(self, role: str, g: Tensor, call: Call, slot: Slot) -> None:
        """Add Σ_n (per-sample gradient)², and what else the slot wants; override it where they need not all be formed.

        Arguments are those of `per_sample`, and the slot for the totals of this weight.
        """
        for rows in slot.chunks(len(g), slot.numel + self.work(g, call)):
            part = call.holding(t[rows] for t in call.saved)
            slot.add(self.per_sample(role, g[rows], part))

    def few_rows(self, g: Tensor, call: Call) -> tuple[Tensor, Tensor] | None:
        """Return which rows of the weight each sample uses, and their gradients, where these are few.

        Returns:
            Numbers, shape (n, k), and gradients, (n, k, *row): each repetition of a number holds a part of the sum.
            None where the gradient may have every row.
        """
        del g, call
        return None

    def apart(self, g: Tensor, call: Call, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Split the gradient of a matrix into the rows of those numbers, shape (n, k, *row), and ``g`` for the others.

        With `few_rows` it serves tied weights, whose whole gradient need then not be formed.
        """
        raise NotImplementedError(f"{type(self).__name__} does not split rows")

    def work(self, g: Tensor, call: Call) -> int:
        """Say how many elements `per_sample` holds for one sample besides its result; bounds the chunks.

        By default as many as one sample of ``g`` and of what is saved.
        """
        return sum(math.prod(t.shape[1:]) for t in (g, *call.saved))


_RULES: dict[Callable[..., Any], Rule] = {}


def register_rule(rule: Rule) -> None:
    """Make a rule known to every later estimate; a `ConfigurationError` where another one covers its function."""
    for function in rule.functions:
        known = _RULES.get(function)
        if known is not None and type(known) is not type(rule):
            raise ConfigurationError(
                f"expected one rule for {name_of(function)}, saw {type(known).__name__} and {type(rule).__name__}"
            )
        _RULES[function] = rule


def rule_for(function: Callable[..., Any]) -> Rule | None:
    """Find the rule of a function."""
    return _RULES.get(function)


def number_of_rules() -> int:
    """Count the functions that have a rule."""
    return len(_RULES)


def visible(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function of your own be seen as one call, as torch's own functions are; a decorator.

    The function takes at least one tensor by position. A `Rule` can then name it in its ``functions``.
    """

    @functools.wraps(function)
    def seen(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        tensors = [a for a in args if isinstance(a, Tensor)]
        if has_torch_function(tensors):
            result: _R = handle_torch_function(seen, tensors, *args, **kwargs)
            return result
        return function(*args, **kwargs)

    return seen


def name_of(function: Callable[..., Any]) -> str:
    """Name a function for a message."""
    name = getattr(function, "__qualname__", None) or repr(function)
    return (
        name.replace("_VariableFunctionsClass.", "torch.")
        .replace("_TensorBase.", "Tensor.")
        .replace("TensorBase.", "Tensor.")
    )
