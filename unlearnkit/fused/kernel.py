"""Compiles a translated rule, together with all that an edit does to a weight, into one loop."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import attrs
import torch

from unlearnkit.compiled import load
from unlearnkit.fused.trace import KINDS, Program

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
_SOURCE = Path(__file__).with_name("one_pass.cpp")
Kernel = Callable[..., None]
"""The function `one_pass` of ``one_pass.cpp``."""


@final
@attrs.frozen(cache_hash=True)
class Dtypes:
    """What a kernel is compiled for.

    Attributes:
        weight: Of θ.
        forget: Of the total of F_f.
        reference: Of the total of F_r; None when there is none.
    """

    weight: torch.dtype
    forget: torch.dtype
    reference: torch.dtype | None = None

    def supported(self) -> bool:
        """Say whether there is a kernel."""
        return self.weight in _WEIGHTS and {self.forget, self.reference or self.forget} <= TOTALS


def compile_rule(program: Program, dtypes: Dtypes, computing: torch.dtype) -> Kernel:
    """Compile a rule, unless that has been done before.

    Args:
        program: The rule.
        dtypes: Of the arrays; they are `Dtypes.supported`.
        computing: That of the program.

    Returns:
        The kernel.

    Raises:
        ConfigurationError: It cannot be compiled here; see `unlearnkit.compiled.load`.
    """
    weight, bits, narrow = _WEIGHTS[dtypes.weight]
    defined = {
        "WEIGHT": weight,
        "BITS": bits,
        "NARROW": narrow,
        "COMPUTE": KINDS[computing],
        "FORGET": KINDS[dtypes.forget],
        "REFERENCE": KINDS[dtypes.reference or dtypes.forget],
        "ZEROS": int(dtypes.reference is None),
        "PIECE": PIECE,
        "RULE": statements(program),
    }
    before = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    kernel: Any = load(_SOURCE, before=before, flags=_FLAGS).one_pass
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    kernel.argtypes = [pointer, *[integer] * 4, *[pointer] * 3, ctypes.c_int, ctypes.c_int]
    kernel.restype = None
    function: Kernel = kernel
    return function


def statements(program: Program) -> str:
    """Write a rule in C++.

    Args:
        program: The rule.

    Returns:
        What returns θ' from ``theta``, ``forget``, ``reference`` and ``number[]``; it may set ``odd``.
    """
    lines = [f"const double number{n} = number[{n}];" for n in range(len(program.numbers))]
    for step in program.steps:
        lines.append(f"const {step.kind} {step.name} = {step.text};")
        if step.odd:
            lines.append(f"odd |= {step.odd};")
    return " ".join((*lines, f"return {program.result};"))
