"""Writes a translated rule in C++, for ``one_pass.cpp`` and ``question.cpp``."""

import re
from collections.abc import Iterable, Iterator

from unlearnkit.unlearning.fused.trace import Program, Step


def rule(program: Program) -> str:
    """Write a rule."""
    lines = [*_numbers(range(len(program.numbers)))]
    for step in program.steps:
        lines.append(_made(step))
        if step.odd:
            lines.append(f"odd |= {step.odd};")
    return " ".join((*lines, f"return {program.result};"))


def asked_about(program: Program, place: int) -> str:
    """Write what leads to a question, and nothing else: questions about the same are the same function."""
    text = program.steps[place].text
    lines, names = [f"return {text};"], set(_names(text))
    for step in reversed(program.steps[:place]):
        if step.name in names:
            lines.append(_made(step))
            names.update(() if step.question else _names(step.text))
    used = [n for n in range(len(program.numbers)) if f"number{n}" in names]
    return " ".join((*_numbers(used), *reversed(lines)))


def answers(program: Program) -> str:
    """Write the members of ``Answers``, one for each question under the name of its step, and how it is made."""
    asking = [step for step in program.steps if step.question]
    members = "".join(f"const {step.kind}* {step.name}; " for step in asking)
    made = ", ".join(f"{step.name}(static_cast<const {step.kind}*>(all[{n}]) + at)" for n, step in enumerate(asking))
    head = "Answers(const void* const* all, std::int64_t at)" + (f" : {made}" if made else "")
    return f"{members}{head} {{ (void)all, (void)at; }}"


def _numbers(which: Iterable[int]) -> Iterator[str]:
    return (f"const double number{n} = number[{n}];" for n in which)


def _made(step: Step) -> str:
    return f"const {step.kind} {step.name} = {f'answers.{step.name}[i]' if step.question else step.text};"


def _names(text: str) -> list[str]:
    return re.findall(r"\w+", text)
