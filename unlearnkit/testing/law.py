"""A law: one sentence about every method of a kind, and the search for a counterexample, shown as Python to run."""

import enum
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar, final

import attrs
import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, reject, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, HypothesisException, Unsatisfiable
from torch import Tensor

import unlearnkit
from unlearnkit import UnlearnKitWarning, UnsupportedModelError
from unlearnkit.models.parameters import bits
from unlearnkit.utils.rng import private_rng

_SEED = 870_311_947
Body = Callable[[Any, Any], None]
T = TypeVar("T")


@final
class LawError(AssertionError):
    """A method, an estimator or a metric breaks a law; the message holds the smallest counterexample found."""


def _promises(promise: str) -> Callable[[Any], bool]:
    """Return whether a subject's traits hold a promise; "" is promised by all."""

    def applies(subject: Any) -> bool:
        traits = subject.promises() if hasattr(subject, "promises") else subject.traits
        return bool(getattr(traits, promise, True))  # an author may name a promise that is no trait

    return applies if promise else lambda _: True


@final
@attrs.frozen(kw_only=True, eq=False)
class Law:
    """What must be true of every method of a kind, or of those that promise it in their traits.

    Attributes:
        name: Short, unique among the laws of a kind.
        sentence: What is true when the law holds.
        holds: Called with the subject and one case; raises AssertionError with what was seen when it does not hold.
        cases: Makes the Hypothesis strategy for a subject, of plain values, tensors and attrs objects.
        promise: The trait that the law follows from, or "" when it holds for every method of the kind.
        applies: Whether the law applies to a subject; by default, whether it has the trait.
        waiver: How to take the promise back, as ``"local=False"``.
        rejects: A wrong method that this law finds, in words.
        examples: How many cases are tried.

    Examples:
        >>> bounded = Law(
        ...     name="bounded",
        ...     sentence="No weight leaves [−1, 1].",
        ...     cases=lambda method: st.floats(-9, 9),
        ...     holds=lambda method, x: None if abs(method(x)) <= 1 else fail(f"{x} became {method(x)}"),
        ... )
        >>> bounded.check(lambda x: max(-1.0, min(x, 1.0)))
    """

    name: str
    sentence: str
    holds: Callable[[Any, Any], None]
    cases: Callable[[Any], st.SearchStrategy[Any]] = lambda _: st.none()
    promise: str = ""
    applies: Callable[[Any], bool] = attrs.field(default=attrs.Factory(lambda law: _promises(law.promise), True))
    waiver: str = attrs.field(default=attrs.Factory(lambda law: law.promise and f"{law.promise}=False", True))
    rejects: str = ""
    examples: int = attrs.field(default=100, validator=attrs.validators.ge(1))

    def __str__(self) -> str:
        return self.name

    def check(self, subject: Any, *, examples: int | None = None) -> None:
        """Search for a counterexample, the same way on every run; raise LawError with the smallest one found."""
        found = self._search(subject, examples or self.examples)
        if found is not None:
            case, error, flaky = found
            expected = isinstance(error, AssertionError)
            raise LawError(self._message(subject, case, error, flaky=flaky)) from (None if expected else error)

    def _search(self, subject: Any, examples: int) -> tuple[Any, Exception, bool] | None:
        """Return the smallest failing case, its error, and whether it fails only now and then."""
        failures: list[tuple[Any, Exception]] = []
        refusals: list[tuple[Any, Exception]] = []

        @settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
        )
        @given(case=self.cases(subject))
        def search(case: Any) -> None:
            try:
                # Generators start from the same state for each case, or a smaller one could not be found again; a seed
                # that no author would choose, or one who seeds them could not be told from one who leaves them alone.
                with private_rng(seed=_SEED), warnings.catch_warnings():
                    warnings.simplefilter("ignore", UnlearnKitWarning)
                    self.holds(subject, case)
            except HypothesisException:
                raise
            except UnsupportedModelError as error:  # the subject refuses this model
                refusals.append((case, error))
                reject()
            except Exception as error:
                failures.append((case, error))
                raise

        try:
            search()
        except Flaky:
            return (*failures[-1], True)
        except Unsatisfiable:  # no case is left: it refuses each of them, or none could be drawn
            if not refusals:
                raise
            return (*refusals[-1], False)
        except Exception:
            if not failures:
                raise
            return (*failures[-1], False)
        return None

    def _message(self, subject: Any, case: Any, error: Exception, *, flaky: bool) -> str:
        seen = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        advice = "This law holds for every object of its kind; no trait lifts it."
        if self.promise:
            advice = f"Not meant as a promise? Write {self.waiver} in the traits of {type(subject).__name__}."
        return "\n".join(
            [
                f"the law {self.name!r} is broken by {type(subject).__name__}: {self.sentence}",
                textwrap.indent(f"Seen: {seen}" + (" (not every time)" if flaky else ""), "  "),
                "  The smallest counterexample found, to copy and run:",
                "",
                textwrap.indent(self.reproduction(subject, case), "    "),
                "",
                f"  {advice}",
            ]
        )

    def reproduction(self, subject: Any, case: Any) -> str:
        """Write a case as Python that fails as the law does."""
        imports = {"from unlearnkit.testing import laws_for"}
        lines = [f"subject = {source(subject, imports)}"]
        if attrs.has(type(case)):
            names = [field.name for field in attrs.fields(type(case))]
            lines += [f"{name} = {source(getattr(case, name), imports)}" for name in names]
            lines += [f"case = {class_name(type(case), imports)}({', '.join(f'{name}={name}' for name in names)})"]
        else:
            lines += [f"case = {source(case, imports)}"]
        lines += [f"law = next(law for law in laws_for(subject) if law.name == {self.name!r})"]
        return "\n".join([*sorted(imports), *lines, "law.holds(subject, case)"])


LAWS: dict[type, list[Law]] = {}
"""Base class to the laws that it adds to those of its base classes."""


def laws_for(subject: Any) -> tuple[Law, ...]:
    """Collect the laws that apply to a method, an estimator or a metric, with its traits and options.

    A class may add laws in an attribute ``laws``; one of the same name replaces an inherited one.

    Examples:
        >>> from unlearnkit import DiagonalFisher
        >>> [law.name for law in laws_for(DiagonalFisher()) if law.promise == "batch_free"]
        ['additive', 'order-free', 'batch-size-free']
    """
    found: dict[str, Law] = {}
    for cls in reversed(type(subject).__mro__):
        for law in (*LAWS.get(cls, ()), *vars(cls).get("laws", ())):
            found[law.name] = law
    return tuple(law for law in found.values() if law.applies(subject))


class CaseSkipped(Exception):  # noqa: N818 - no error
    """The subject fails on this case, which the law "runs" reports: the other laws are about calls that succeed."""


def law(kind: type, **settings: Any) -> Callable[[Body], Body]:
    """Add a function to the laws of a base class: its name (with hyphens) is the law's, its docstring the sentence."""

    def add(body: Body) -> Body:
        def holds(subject: Any, case: Any) -> None:
            with suppress(CaseSkipped):
                body(subject, case)

        name = body.__name__.strip("_").replace("_", "-")
        LAWS.setdefault(kind, []).append(Law(name=name, sentence=body.__doc__ or "", holds=holds, **settings))
        return body

    return add


def fail(seen: str) -> None:
    """Raise AssertionError with what was seen, with numbers: the law does not hold."""
    raise AssertionError(seen)


def holds(condition: Any, seen: str) -> None:
    """Require a condition, or `fail` with what was seen instead, with numbers."""
    if not bool(condition):
        fail(seen)


def run_twice(run: Callable[[], T]) -> tuple[T, T]:
    """Call a function with the global generators in two states."""
    with private_rng(seed=1):
        first = run()
    with private_rng(seed=2):
        return first, run()


def source(value: Any, imports: set[str]) -> str:
    """Write a value as a Python expression."""
    if isinstance(value, Tensor):
        return _tensor(value, imports)
    if isinstance(value, torch.dtype):
        imports.add("import torch")
        return str(value)
    if isinstance(value, enum.Enum):
        return f"{class_name(type(value), imports)}.{value.name}"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if attrs.has(type(value)):
        fields = [f"{f.alias}={source(getattr(value, f.name), imports)}" for f in attrs.fields(type(value)) if f.init]
        return f"{class_name(type(value), imports)}({', '.join(fields)})"
    return _nested(value, imports)


def _nested(value: Any, imports: set[str]) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{source(k, imports)}: {source(v, imports)}" for k, v in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({source(sorted(value), imports)})"
    if isinstance(value, list):
        return "[" + ", ".join(source(item, imports) for item in value) + "]"
    if isinstance(value, tuple):
        items = [source(item, imports) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    return f"{class_name(type(value), imports)}()"


def _tensor(tensor: Tensor, imports: set[str]) -> str:
    imports.add("import torch")
    values = tensor.tolist()
    device = "" if tensor.device.type == "cpu" else f', device="{tensor.device}"'
    again = torch.tensor(values, dtype=tensor.dtype)
    if again.is_floating_point():
        again[again.isnan()] = math.nan  # the text "nan" carries neither the sign nor the payload of a NaN
    if torch.equal(bits(again), bits(tensor.cpu())):
        return f"torch.tensor({source(values, imports)}, dtype={tensor.dtype}{device})"
    patterns = bits(tensor)
    return f"torch.tensor({patterns.tolist()}, dtype={patterns.dtype}{device}).view({tensor.dtype})"


def class_name(cls: type, imports: set[str]) -> str:
    """Write the name of a class as it can be imported."""
    module, name = cls.__module__, cls.__qualname__
    if module.startswith("unlearnkit.testing"):
        module = "unlearnkit.testing"
    elif name in unlearnkit.__all__ and getattr(unlearnkit, name) is cls:
        module = "unlearnkit"
    if "<locals>" in name:
        return name.rpartition(".")[2]  # nothing can import it; whoever wrote it knows where it is
    imports.add(f"from {module} import {name.partition('.')[0]}")
    return name
