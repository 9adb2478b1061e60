"""Watches a rule at work on a few numbers and writes down what it did."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

import attrs
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from unlearnkit.unlearning.fused.operations import OPERATIONS, Expression, Operand, Question
from unlearnkit.unlearning.fused.untranslatable import Untranslatable

_ARGUMENTS = ("theta", "forget", "reference")
# What a rule may ask of a tensor, because the answer is the same for every piece of every parameter.
_ASKED = {f"torch.Tensor.{name}.__get__" for name in ("dtype", "device", "is_cuda", "requires_grad", "layout")}
_ASKED |= {"torch.Tensor.is_floating_point", "torch.is_floating_point"}
KINDS = {torch.float32: "float", torch.float64: "double", torch.bool: "bool"}
"""What a value may be, by dtype."""
DTYPES = {kind: dtype for dtype, kind in KINDS.items()}
"""The other way round."""
_EXACT = 1 << 53


@final
@attrs.frozen
class Step:
    """One operation of a rule."""

    name: str
    kind: str
    text: str
    odd: str = ""
    question: Question | None = None


@final
@attrs.frozen
class Program:
    """A rule for one weight."""

    steps: tuple[Step, ...]
    result: str
    numbers: tuple[float, ...]


def translate(
    rule: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype, *, device: torch.device | None = None
) -> Program:
    """Translate a rule that is made of `OPERATIONS`.

    The rule is called once, on made-up numbers. Whatever could make it do something else for other numbers, shapes or
    places is seen and refused: looking at a value or a shape, picking elements, drawing random numbers.

    Example:
        >>> program = translate(lambda t, f, r: torch.where(f > 3 * r, t / 2, t), torch.float32)
        >>> for step in program.steps:
        ...     print(step.kind, step.name, "=", step.text)
        float v0 = reference * float_(number0)
        bool v1 = forget > v0
        float v2 = ratio_to_constant(theta, float_(number1))
        float v3 = choose(v1, v2, theta)
        >>> program.result
        'v3'
    """
    examples = tuple(torch.tensor([1.0, 2.0, 3.0], dtype=dtype, device=device) for _ in _ARGUMENTS)
    watch = _Watch(examples)
    with torch.inference_mode(mode=False), torch.no_grad(), watch:
        try:
            edited = rule(*examples)
        except Untranslatable:
            raise
        except Exception as error:  # the plain edit meets the same error, and reports it
            raise Untranslatable(f"it fails: {type(error).__name__}") from error
    return watch.program(edited)


@final
class _Watch(TorchFunctionMode):
    def __init__(self, examples: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._dtype, self._shape, self._device = examples[0].dtype, examples[0].shape, examples[0].device
        kind = KINDS[self._dtype]
        self._known = {id(t): Operand(name, kind) for t, name in zip(examples, _ARGUMENTS, strict=True)}
        self._held: list[object] = list(examples)  # while they live, no other object has their ids
        self._numbers: list[float] = []
        self._steps: list[Step] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._held.append(result)
        name = _name(func)
        if name not in _ASKED and any(id(a) in self._known for a in _flat((*args, *kwargs.values()))):
            self._write(name, args, kwargs, result)
        return result

    def program(self, edited: Any) -> Program:
        """Return what was written, given what the rule returned."""
        result = self._known.get(id(edited))
        if result is None or edited.dtype != self._dtype:
            raise Untranslatable("it does not return a tensor like its arguments, made of them")
        return Program(tuple(self._steps), result.text, tuple(self._numbers))

    def _write(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        operation = OPERATIONS.get(name.removeprefix("torch.").removeprefix("Tensor."))
        if operation is None or "out" in kwargs:
            raise Untranslatable(f"{name} is not among the operations that are compiled")
        self._check(name, result)
        if id(result) in self._known:  # it was asked to be what it is
            return
        if name == "torch.Tensor.where":  # self, condition, other: torch.where has the condition first
            args = (args[1], args[0], *args[2:])
        working = self._working(result, (*args, *kwargs.values()))
        try:
            made = operation(
                *(self._operand(a, working) for a in args), **{k: self._operand(a, working) for k, a in kwargs.items()}
            )
        except (TypeError, IndexError) as error:
            raise Untranslatable(f"{name} with these arguments") from error
        expression = Expression(made) if isinstance(made, str) else made
        step = Step(f"v{len(self._steps)}", KINDS[result.dtype], expression.text, expression.odd, expression.question)
        self._steps.append(step)
        self._known[id(result)] = Operand(step.name, step.kind)

    def _check(self, name: str, result: Any) -> None:
        if not (
            type(result) is Tensor
            and result.shape == self._shape
            and result.dtype in KINDS
            and result.device == self._device
        ):
            raise Untranslatable(f"{name} gives something other than a number for each number")

    def _working(self, result: Tensor, operands: tuple[Any, ...]) -> str:
        kinds = {self._known[id(o)].kind for o in operands if id(o) in self._known} | {KINDS[result.dtype]}
        return next((kind for kind in ("double", "float") if kind in kinds), KINDS[self._dtype])

    def _operand(self, value: Any, working: str) -> Any:
        if id(value) in self._known:
            known = self._known[id(value)]
            return Operand(known.text, known.kind, working=working)
        if isinstance(value, Tensor):
            if value.dim() or value.device.type != "cpu":
                raise Untranslatable("a tensor that is none of the arguments")
            value = value.item()
        if value is None or isinstance(value, torch.dtype | torch.device | torch.memory_format):
            return value
        if type(value) not in {int, float} or (type(value) is int and abs(value) > _EXACT):
            raise Untranslatable(f"an operand of {value!r}")
        return self._constant(float(value), working)

    def _constant(self, value: float, working: str) -> Operand:
        if math.isnan(value):
            raise Untranslatable("a constant that is not a number")
        self._numbers.append(value)
        return Operand(f"{working}_(number{len(self._numbers) - 1})", working, value=value, working=working)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


@functools.cache
def _name(function: Any) -> str:
    return resolve_name(function) or repr(function)
