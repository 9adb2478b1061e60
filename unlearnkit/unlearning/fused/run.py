"""Compiled rules: chosen, compared with torch once, and left to torch where they cannot do it."""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, final

import attrs
import torch
from torch import Tensor

from unlearnkit.models.parameters import bits
from unlearnkit.models.undo_log import UndoLog
from unlearnkit.unlearning.fused.arrays import Arrays
from unlearnkit.unlearning.fused.device_kernel import device_kernel, on_device
from unlearnkit.unlearning.fused.device_passage import DevicePassage
from unlearnkit.unlearning.fused.kernel import Dtypes, compile_rule
from unlearnkit.unlearning.fused.passage import Passage
from unlearnkit.unlearning.fused.trace import Program, translate
from unlearnkit.unlearning.fused.untranslatable import Untranslatable
from unlearnkit.unlearning.operands import Averaged, RuleOperands
from unlearnkit.utils.compiled import go_on_without
from unlearnkit.utils.errors import ConfigurationError, UnlearnKitWarning
from unlearnkit.utils.spare import Arena

VARIABLE = "UNLEARNKIT_EDIT"
"""The environment variable that says how elementwise methods edit: ``auto``, ``compiled`` or ``plain``."""
# Compiling takes a second, once on each machine; torch needs a tenth of that for so many weights.
_LARGE = 1 << 22
# The first weights that a program with these constants meets in this process are computed by torch too.
_COMPARED = 8192
_WHOLE = 64  # at least as many numbers as a processor works on at once
_compared: dict[tuple[Program, "_Kind"], bool] = {}
_LOG = logging.getLogger(__name__)

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""θ' = rule(θ, F_f, F_r), element by element."""
Plainly = Callable[[Tensor, Averaged, Averaged | None], Tensor]
"""Returns the edited copy of weights, made by torch."""


class _Pass(Protocol):
    def run(self, arrays: Sequence[Arrays]) -> list[int | None]: ...


@final
@attrs.frozen(cache_hash=True)
class _Kind:
    """What a rule is compiled for."""

    dtypes: Dtypes
    device: torch.device


@final
@attrs.frozen(kw_only=True)
class _Made:
    """A compiled rule, and what starts a pass of it."""

    program: Program
    begin: Callable[..., _Pass]


def fused(rule: Rule, *, who: str, weights: int) -> "Fused | None":
    """Say whether a rule is to be compiled, which changes how long an edit takes and not a bit of its result.

    Where a rule takes a power, `exp2` or `sigmoid`, torch itself may round the last few numbers of a tensor otherwise
    than the rest; which these are depends on how many it is given at a time.
    """
    mode = os.environ.get(VARIABLE) or "auto"
    if mode not in {"auto", "compiled", "plain"}:
        raise ConfigurationError(f"expected {VARIABLE} to be auto, compiled or plain, saw {mode!r}")
    wanted = mode == "compiled" or (mode == "auto" and weights >= _LARGE)
    return Fused(rule, who=who, required=mode == "compiled") if wanted else None


@final
class Fused:
    """Compiles a rule for each device and combination of dtypes that it meets, and runs it."""

    def __init__(self, rule: Rule, *, who: str, required: bool = False) -> None:
        self._rule, self._who, self._required = rule, who, required
        self._made: dict[_Kind, _Made | None] = {}
        self._arena = Arena(torch.get_num_threads())

    def run(
        self, trios: Sequence[RuleOperands], *, plainly: Plainly, journal: UndoLog | None = None, write: bool = True
    ) -> list[int | None]:
        """Edit parameters, all of them on one device in one pass."""
        counts: list[int | None] = [None] * len(trios)
        alike: dict[_Kind, dict[int, Arrays]] = {}
        for place, trio in enumerate(trios):
            arrays = Arrays.of(trio)
            if arrays is not None:
                alike.setdefault(_Kind(arrays.dtypes, arrays.device), {})[place] = arrays
        for kind, group in alike.items():
            made = self._kernel(kind, list(group.values()), plainly)
            if made is not None:
                edit = made.begin(journal=journal, write=write)
                for place, count in zip(group, edit.run(list(group.values())), strict=True):
                    counts[place] = count
        if write:
            edited = [trio.theta for trio, count in zip(trios, counts, strict=True) if count]
            torch.autograd.graph.increment_version([theta for theta in edited if not theta.is_inference()])
        return counts

    def _kernel(self, kind: _Kind, group: list[Arrays], plainly: Plainly) -> _Made | None:
        if kind not in self._made:
            self._made[kind] = self._compile(kind, group[0].computing)
        made = self._made[kind]
        if made is None:
            return None
        key = (made.program, kind)
        if key not in _compared:
            agrees = next((a for a in (_agrees(made, arrays, plainly) for arrays in group) if a is not None), None)
            if agrees is None:
                return None
            _compared[key] = agrees
        if not _compared[key]:
            self._made[kind] = None
            said = (
                f"{self._who} is left to torch: its compiled form gives other bits than torch; please report this rule"
            )
            warnings.warn(said, UnlearnKitWarning, stacklevel=3)
        return self._made[kind]

    def _compile(self, kind: _Kind, computing: torch.dtype) -> _Made | None:
        try:
            program = translate(self._rule, computing, device=kind.device)
            made = _Made(program=program, begin=self._begin(program, kind, computing))
        except Untranslatable as error:
            if self._required:
                raise ConfigurationError(f"{self._who} cannot be compiled ({error}): unset {VARIABLE}") from error
            _LOG.info("%s is left to torch: %s", self._who, error)
            return None
        except ConfigurationError as error:
            if self._required:
                raise
            go_on_without(f"{self._who} is left to torch", error)
            return None
        _LOG.info("%s is compiled for %s on %s", self._who, kind.dtypes, kind.device)
        return made

    def _begin(self, program: Program, kind: _Kind, computing: torch.dtype) -> Callable[..., _Pass]:
        numbers = program.numbers
        if on_device(kind.device):
            kernel = device_kernel(program, kind.dtypes, computing, kind.device)
            return functools.partial(DevicePassage, kernel=kernel, numbers=numbers)
        compiled = compile_rule(program, kind.dtypes, computing)
        return functools.partial(Passage, kernel=compiled, numbers=numbers, arena=self._arena)


def _agrees(made: _Made, arrays: Arrays, plainly: Plainly) -> bool | None:
    """Compare with torch on the first weights; None when these are among what is left to torch."""
    length = min(_COMPARED, arrays.tensors[0].numel())
    if any(step.question for step in made.program.steps):  # at the end of a tensor, torch may give other answers
        length -= length % _WHOLE
    if not length:
        return None
    trio = arrays.head(length)
    head = Arrays.of(trio)
    assert head is not None, "a part of what is flat is flat"
    try:
        expected = plainly(trio.theta, trio.forget, trio.reference)
    except Exception:  # noqa: BLE001 - torch meets it again, and whoever edits a parameter says which
        return None
    if made.begin().run([head]) == [None]:
        return None
    return torch.equal(bits(trio.theta), bits(expected))
