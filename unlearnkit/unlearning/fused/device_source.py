"""Writes a translated rule in Triton's Python, together with all that an edit does to a weight."""

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from unlearnkit.unlearning.fused.kernel import Dtypes
from unlearnkit.unlearning.fused.trace import Program
from unlearnkit.unlearning.fused.untranslatable import Untranslatable
from unlearnkit.utils.compiled import cache_folder, kept, source_text
from unlearnkit.utils.errors import ConfigurationError

BLOCK = 2048
"""How many weights a program of the device edits."""
_SOURCE = Path(__file__).with_name("one_pass.triton")
_WEIGHTS = {  # all bits but the sign; infinity
    torch.float32: (0x7FFFFFFF, 0x7F800000),
    torch.float64: (0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    torch.bfloat16: (0x7FFF, 0x7F80),
    torch.float16: (0x7FFF, 0x7C00),
}


@functools.cache
def load_source(text: str) -> Any:
    """Define what a text in Triton's Python defines.

    Triton reads the source of its functions from a file, so the text is kept in the cache folder.
    """
    if importlib.util.find_spec("triton") is None:
        raise ConfigurationError("compiled kernels for CUDA need Triton, saw none: pip install triton")
    path = cache_folder() / f"one_pass-{hashlib.sha256(text.encode()).hexdigest()[:16]}.py"
    if not path.exists():
        with kept(path) as fresh:
            fresh.write_text(text, encoding="utf-8")
    names: dict[str, Any] = {"__name__": f"unlearnkit.unlearning.fused.{path.stem}", "__file__": str(path)}
    exec(compile(text, str(path), "exec"), names)
    return names


def source(program: Program, dtypes: Dtypes, computing: torch.dtype, *, reciprocals: bool) -> str:
    """Write the module of a rule."""
    magnitude, exponent = _WEIGHTS[dtypes.weight]
    defined = {
        "WEIGHT": f"tl.{_name(dtypes.weight)}",
        "COMPUTE": f"tl.{_name(computing)}",
        "ZEROS": dtypes.reference is None,
        "RECIPROCALS": reciprocals,
        "BLOCK": BLOCK,
        "MAGNITUDE": magnitude,
        "EXPONENT": exponent,
    }
    lines = ["from triton import language as tl", ""]
    lines += [f"{name} = tl.constexpr({value})" for name, value in defined.items()]
    return "\n".join((*lines, source_text(_SOURCE), rule_source(program)))


def rule_source(program: Program) -> str:
    """Write a rule in Triton's Python.

    Example:
        >>> from unlearnkit.unlearning.fused.trace import translate
        >>> print(rule_source(translate(lambda t, f, r: torch.maximum(t, r * 3), torch.float32)))
        @triton.jit
        def rule(theta, forget, reference, numbers):
            odd = tl.zeros([BLOCK], tl.int1)
            number0 = tl.load(numbers + 0)
            v0 = float_(reference * float_(number0))
            v1 = float_(larger(theta, v0))
            odd = odd | tie(theta, v0)
            return tl.broadcast_to(v1, [BLOCK]), odd
        <BLANKLINE>
    """
    lines = ["odd = tl.zeros([BLOCK], tl.int1)"]
    lines += [f"number{n} = tl.load(numbers + {n})" for n in range(len(program.numbers))]
    for step in program.steps:
        if step.question:
            raise Untranslatable(f"only on a CPU is torch asked for torch.{step.question.function} alone")
        lines.append(f"{step.name} = {step.kind}_({step.text})")
        if step.odd:
            lines.append(f"odd = odd | {step.odd}")
    lines.append(f"return tl.broadcast_to({program.result}, [BLOCK]), odd")
    return "\n    ".join(("@triton.jit\ndef rule(theta, forget, reference, numbers):", *lines)) + "\n"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
