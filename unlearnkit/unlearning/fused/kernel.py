"""Compiles a translated rule, together with all that an edit does to a weight, into one loop."""

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import attrs
import torch

from unlearnkit.unlearning.fused.c_plus_plus import answers, asked_about, rule
from unlearnkit.unlearning.fused.operations import Question
from unlearnkit.unlearning.fused.trace import DTYPES, KINDS, Program
from unlearnkit.utils.compiled import load, source_text

_WEIGHTS = {
    torch.float32: ("float", "std::uint32_t", 0),
    torch.float64: ("double", "std::uint64_t", 0),
    torch.bfloat16: ("std::uint16_t", "std::uint16_t", 1),
    torch.float16: ("std::uint16_t", "std::uint16_t", 2),
}
PIECE = 1 << 14
"""How many weights a thread edits at a time, at most: they and what is packed of them stay in the cache of its core."""
TOTALS = frozenset({torch.float32, torch.float64})
"""The dtypes of totals that are compiled."""
# Nothing here changes a result. The first forbids what would: a product and a sum rounded once.
_FLAGS = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing")
_FOLDER = Path(__file__).parent
Function = Callable[..., None]
_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64


@final
@attrs.frozen
class Asked:
    """A question of a rule."""

    numbers: Function
    question: Question
    dtype: torch.dtype


@final
@attrs.frozen
class Kernel:
    """A compiled rule."""

    edit: Function
    asked: tuple[Asked, ...] = ()


@final
@attrs.frozen(cache_hash=True)
class Dtypes:
    """What a kernel is compiled for."""

    weight: torch.dtype
    forget: torch.dtype
    reference: torch.dtype | None = None

    def supported(self) -> bool:
        """Say whether there is a kernel."""
        return self.weight in _WEIGHTS and {self.forget, self.reference or self.forget} <= TOTALS


def compile_rule(program: Program, dtypes: Dtypes, computing: torch.dtype) -> Kernel:
    """Compile a rule, unless that has been done before."""
    before = _defined(_shape(dtypes, computing) | {"ANSWERS": answers(program)})
    before += source_text(_FOLDER / "piece.h")
    edit = _load("one_pass", before + _defined({"PIECE": PIECE, "RULE": rule(program)}))
    edit.argtypes = [_POINTER, *[_INTEGER] * 4, *[_POINTER] * 4, ctypes.c_int, ctypes.c_int]
    return Kernel(edit, tuple(_asked(program, n, before) for n, step in enumerate(program.steps) if step.question))


def _asked(program: Program, place: int, before: str) -> Asked:
    step = program.steps[place]
    assert step.question is not None
    numbers = _load("question", before + _defined({"ANSWER": step.kind, "QUESTION": asked_about(program, place)}))
    numbers.argtypes = [_POINTER, *[_INTEGER] * 4, *[_POINTER] * 3, ctypes.c_int]
    return Asked(numbers, step.question, DTYPES[step.kind])


def _load(name: str, before: str) -> Any:
    function = getattr(load(_FOLDER / f"{name}.cpp", before=before, flags=_FLAGS), name)
    function.restype = None
    return function


def _defined(values: Mapping[str, object]) -> str:
    return "".join(f"#define {name} {value}\n" for name, value in values.items())


def _shape(dtypes: Dtypes, computing: torch.dtype) -> dict[str, object]:
    weight, bits, narrow = _WEIGHTS[dtypes.weight]
    return {
        "WEIGHT": weight,
        "BITS": bits,
        "NARROW": narrow,
        "COMPUTE": KINDS[computing],
        "FORGET": KINDS[dtypes.forget],
        "REFERENCE": KINDS[dtypes.reference or dtypes.forget],
        "ZEROS": int(dtypes.reference is None),
    }
