"""Measures the exact Fisher on models of other libraries: ``python -m tests.benchmarks.zoo``.

For each model: the error in float64 against one sample at a time, the error in float32 against the same, the time of
one more batch of 16 as a multiple of a plain pass, and what fell back. Every model goes to the CSV file as soon as it
is measured; models that are there already are left out, so that a run may be stopped and started again.

``--large`` measures the times alone, of some models at the size that people use. ``--page docs/results/zoo.md`` writes
the tables of that page from the CSV file.
"""

import argparse
import copy
import csv
import re
import statistics
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.zoo_models import LARGE, MODELS, Made, double, made
from unlearnkit import DiagonalFisher
from unlearnkit.data.batches import batch_size, take
from unlearnkit.models.norm_gradients import norm_gradient_fix
from unlearnkit.utils.errors import UnlearnKitError

COLUMNS = (
    "model",
    "weights",
    "error64",
    "error32",
    "ratio",
    "plain_ms",
    "first",
    "slow",
    "whole",
    "refused",
    "seconds",
)
SAMPLES, BATCH = 4, 16
EXACT = 1e-6  # some libraries compute norms in float32 whatever the dtype of the weights
TABLES = "<!-- by python -m tests.benchmarks.zoo --page -->"
LARGE_TABLES = "<!-- by python -m tests.benchmarks.zoo --large --page -->"
NO_RULE = re.compile(r"no rule for (.*): differentiated", re.DOTALL)
WHOLE = re.compile(r"keep its samples apart at (.*): going on with", re.DOTALL)


def oracle(one: Made, batch: Any) -> dict[str, torch.Tensor]:
    """Differentiate every sample alone."""
    named = {name: p for name, p in one.model.named_parameters() if p.requires_grad}
    totals, fixed = {name: torch.zeros_like(p) for name, p in named.items()}, norm_gradient_fix(one.model)
    for i in range(batch_size(batch)):
        with fixed():  # torch's batch norm has a wrong gradient for a single sample
            loss = one.objective.losses(one.model, take(batch, slice(i, i + 1))).sum()
        for name, g in zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True):
            if g is not None:
                totals[name] += g.square()
    return totals


def error(seen: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative L1 difference over all parameters that are more than rounding error."""
    scale = max(float(t.mean()) for t in expected.values() if t.numel())
    worst = 0.0
    for name, want in expected.items():
        if want.numel():
            floor = 1e-9 * scale * want.numel()
            worst = max(worst, float((seen[name].double() - want).abs().sum()) / (float(want.sum()) + floor))
    return worst


def measure(name: str, rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row["model"] = name
    one = made(name)
    row["weights"] = sum(p.numel() for p in one.model.parameters() if p.requires_grad)
    torch.manual_seed(1)
    few, batch = one.draw(SAMPLES), one.draw(BATCH)
    expected = _exact(one, few, row)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = DiagonalFisher().estimate(one.model, [few], objective=one.objective)
            row["error32"] = f"{error(dict(found.totals), expected):.1e}" if expected else ""
            del expected, found
            row |= _times(one, batch, rounds)
        except (UnlearnKitError, RuntimeError) as refusal:
            row["refused"] = f"{type(refusal).__name__}: {refusal}"
    said = [str(w.message) for w in caught]
    row["slow"] = "; ".join(dict.fromkeys(s for text in said for m in NO_RULE.findall(text) for s in m.split("; ")))
    row["whole"] = "; ".join(dict.fromkeys(m for text in said for m in WHOLE.findall(text)))
    return row


def measure_large(name: str, rounds: int) -> dict[str, Any]:
    one = made(name, large=True)
    row = dict.fromkeys(COLUMNS, "") | {"model": name}
    row["weights"] = sum(p.numel() for p in one.model.parameters() if p.requires_grad)
    torch.manual_seed(1)
    return row | _times(one, one.draw(BATCH), rounds)


def _exact(one: Made, few: Any, row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Measure the error in float64, and return the right totals: of the float32 model where float64 does not work."""
    wide = Made(copy.deepcopy(one.model).double(), one.draw, one.objective)
    try:
        expected = oracle(wide, double(few))
    except RuntimeError as failure:  # functions for float32 alone; a model that keeps a part of its graph: seen later
        return {} if "second time" in str(failure) else oracle(one, few)
    if not all(bool(t.isfinite().all()) for t in expected.values()):
        return oracle(one, few)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = DiagonalFisher().estimate(wide.model, [double(few)], objective=one.objective)
    row["error64"] = f"{error(dict(found.totals), expected):.1e}"
    return expected


def _times(one: Made, batch: Any, rounds: int) -> dict[str, str]:
    model, weights = one.model, [p for p in one.model.parameters() if p.requires_grad]

    def plain() -> None:
        torch.autograd.grad(one.objective.losses(model, batch).mean(), weights, allow_unused=True)

    fisher = DiagonalFisher(recheck=0).accumulator(model, objective=one.objective)

    def ours() -> None:
        fisher.add(batch)

    plain()
    first = _seconds(ours)
    _seconds(ours)
    pairs = [(_seconds(plain), _seconds(ours)) for _ in range(rounds)]
    fastest = statistics.median(p for p, _ in pairs)
    return {
        "ratio": f"{statistics.median(b / a for a, b in pairs):.2f}",
        "plain_ms": f"{1e3 * fastest:.1f}",
        "first": f"{first / fastest:.1f}",
    }


def page(rows: list[dict[str, Any]]) -> str:
    """Return the tables of the page: one line for each library, what is not plain, and one line for each model."""
    libraries = list(dict.fromkeys(row["model"].partition(":")[0] for row in rows))
    lines = ["| library | models | exact | refused | whole-model fall-back | a function alone, one sample at a time "]
    lines[0] += "| × plain, median | most |"
    lines.append("|---|---|---|---|---|---|---|---|")
    for library in [*libraries, "all"]:
        mine = [row for row in rows if library in {"all", row["model"].partition(":")[0]}]
        ratios = [float(row["ratio"]) for row in mine if row["ratio"]]
        counts = (
            len(mine),
            sum(map(exact, mine)),
            *(sum(bool(row[c]) for row in mine) for c in ("refused", "whole", "slow")),
        )
        cells = (library, *counts, f"{statistics.median(ratios):.2f}", f"{max(ratios):.2f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "What falls back or is refused:", "", "| model | what | why |", "|---|---|---|"]
    kinds = {"refused": "refused", "whole": "whole model", "slow": "that function"}
    for row in rows:
        said = [(words, " ".join(row[c].split())[:160].replace("|", "/")) for c, words in kinds.items() if row[c]]
        lines += [f"| {row['model']} | {words} | `{why}` |" for words, why in said]
    lines += ["", "| model | weights | error, float64 | error, float32 | plain, ms | × plain | first batch, × plain |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row[c] or "–" for c in ("model", "weights", "error64", "error32", "plain_ms", "ratio", "first")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page_large(rows: list[dict[str, Any]]) -> str:
    """Return the table of the large models: one line for each library."""
    lines = ["| library | models | plain pass, s | × plain, median | least and most | first batch, × plain |"]
    lines.append("|---|---|---|---|---|---|")
    known = [row for row in rows if row["ratio"]]
    for library in [*dict.fromkeys(row["model"].partition(":")[0] for row in known), "all"]:
        mine = [row for row in known if library in {"all", row["model"].partition(":")[0]}]
        ratios, plain, first = ([float(row[c]) for row in mine] for c in ("ratio", "plain_ms", "first"))
        spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
        numbers = f"{statistics.median(plain) / 1e3:.1f} | {statistics.median(ratios):.2f} | {spread}"
        lines.append(f"| {library} | {len(mine)} | {numbers} | {statistics.median(first):.2f} |")
    worst = sorted(known, key=lambda row: -float(row["ratio"]))[:5]
    lines += ["", "The dearest: " + ", ".join(f"{row['model']} {row['ratio']}" for row in worst) + "."]
    return "\n".join(lines) + "\n\n"


def exact(row: dict[str, Any]) -> bool:
    return float(row["error64"] or row["error32"] or 1) < EXACT


def _seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, help="default: out/zoo.csv, or out/zoo-large.csv")
    parser.add_argument("--large", action="store_true", help="the times of some models at the size that people use")
    parser.add_argument("--only", default="", help="regular expression: which models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--page", type=Path, help="write the tables of this page from the CSV file, and measure nothing"
    )
    parser.add_argument("--again", action="store_true", help="measure what is in the CSV file again")
    args = parser.parse_args()
    args.csv = args.csv or Path("out/zoo-large.csv" if args.large else "out/zoo.csv")
    if args.page:
        before, _, after = args.page.read_text(encoding="utf-8").partition(TABLES)
        if args.large:
            before, after = before.partition(LARGE_TABLES)[0], TABLES + after
            args.page.write_text(f"{before}{LARGE_TABLES}\n\n{page_large(_read(args.csv))}{after}", encoding="utf-8")
        else:
            args.page.write_text(before + TABLES + "\n\n" + page(_read(args.csv)), encoding="utf-8")
        return
    torch.set_num_threads(args.threads)
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    rows = {row["model"]: row for row in _read(args.csv)}
    one = measure_large if args.large else measure
    for name in (n for n in (LARGE if args.large else MODELS) if re.search(args.only, n)):
        if name in rows and not args.again:
            continue
        start = time.monotonic()
        try:
            row = one(name, args.rounds)
        except Exception as failure:  # noqa: BLE001 - a model that fails must not end the run
            row = dict.fromkeys(COLUMNS, "") | {"model": name, "refused": f"FAILED {type(failure).__name__}: {failure}"}
            if args.only:
                traceback.print_exc()
        row["seconds"] = f"{time.monotonic() - start:.1f}"
        rows[name] = row
        _write(args.csv, list(rows.values()))
        print(" | ".join(" ".join(str(row[c]).split())[:150] for c in COLUMNS), flush=True)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    fresh.replace(path)


if __name__ == "__main__":
    main()
