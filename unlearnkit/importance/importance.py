"""Importances: for each weight, the exact sum of one term per sample or batch, and the number of terms."""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import attrs
import cattrs
import torch
from torch import Tensor

from unlearnkit.distributed.sharded_tensors import is_sharded, local, placement, refuse_sharded, shard_like
from unlearnkit.importance.provenance import (
    DataOrder,
    Fingerprint,
    Role,
    coarsest_eps,
    error_of_difference,
    error_of_sum,
)
from unlearnkit.models.parameters import extremes
from unlearnkit.utils import display
from unlearnkit.utils.errors import (
    MismatchError,
    NonFiniteError,
    StoreError,
    UnlearnKitError,
    UnlearnKitWarning,
    raise_all,
)
from unlearnkit.utils.options import by_fields, read_only
from unlearnkit.utils.safetensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMAT = "unlearnkit-importance-1"
_WIDE = (torch.float32, torch.float64)
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, UnlearnKitError, cattrs.BaseValidationError)


def _checked_totals(totals: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    where = "Importance.totals"
    if not isinstance(totals, Mapping):
        raise MismatchError(f"{where}: expected a mapping of names to tensors, saw {type(totals).__name__}")
    if not totals:
        raise MismatchError(f"{where}: expected at least one named tensor, saw none")
    others = {name: total for name, total in totals.items() if not isinstance(total, Tensor)}
    raise_all((f"{name}: expected a tensor, saw {type(other).__name__}" for name, other in others.items()), where=where)
    narrow = {name: total.dtype for name, total in totals.items() if total.dtype not in _WIDE}
    why = "squares of half-precision gradients vanish"
    raise_all((f"{n}: expected float32 or float64, saw {dtype} ({why})" for n, dtype in narrow.items()), where=where)
    return read_only({str(name): total.detach() for name, total in totals.items()})


def _check_number(_: Any, field: "attrs.Attribute[int]", value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MismatchError(f"Importance.{field.name}: expected a whole number ≥ 0, saw {value!r}")


def _check_error(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value < math.inf):
        raise MismatchError(f"Importance.{field.name}: expected a finite number ≥ 0 or None, saw {value!r}")


@final
@attrs.frozen(kw_only=True, eq=False, repr=False)
class Importance:
    """The sum of one non-negative term per sample (or batch) for every weight, and the number of terms.

    A notebook shows the share of each layer in the sum over all weights.

    Importances with different fingerprints (another estimator, objective, precision or model) cannot be mixed: that is
    a `MismatchError`.

    Attributes:
        totals: Parameter name to total, each of its parameter's shape, float32 or float64, ≥ 0. For a sharded model
            they are sharded as its parameters are, and every process must make the same calls.
        count: Number of terms: samples for a per-sample estimator, batches or their sizes for a batched one.
        samples: Number of samples.
        fingerprint: What was measured and on which model.
        role: Which set it was measured on.
        trail: Batch sizes and order, as they were iterated.
        relative_error: Bound on the relative standard deviation of a weight's total over the estimator's random
            numbers, rounding not included: 0.0 for exact estimators, None when no bound is known.

    Examples:
        >>> one = Importance(totals={"w": torch.tensor([1.0, 4.0])}, count=1, samples=1)
        >>> two = one + one
        >>> two
        Importance(1 tensors, 2 weights, count=2, samples=2, role=unknown)
        >>> two.mean()["w"]
        tensor([1., 4.])
    """

    totals: Mapping[str, Tensor] = attrs.field(converter=_checked_totals)
    count: int = attrs.field(validator=_check_number)
    samples: int = attrs.field(default=0, validator=_check_number)
    fingerprint: Fingerprint = attrs.field(factory=Fingerprint)
    role: Role = attrs.field(default=Role.UNKNOWN, converter=Role)
    trail: DataOrder = attrs.field(factory=DataOrder)
    relative_error: float | None = attrs.field(default=0.0, validator=_check_error)

    __reduce__ = by_fields

    def __repr__(self) -> str:
        weights = sum(t.numel() for t in self.totals.values())
        shown = None if self.relative_error is None else f"{self.relative_error:.3g}"
        error = "" if shown == "0" else f", relative_error={shown}"
        return (
            f"Importance({len(self.totals)} tensors, {weights} weights, count={self.count}, "
            f"samples={self.samples}, role={self.role.value}{error})"
        )

    def _repr_html_(self) -> str:
        first = display.paragraphs(repr(self))
        if any(map(is_sharded, self.totals.values())):  # a sum would wait for the other processes
            return first
        return first + display.share_bars(self.layers(), name="layer", share="of the importance")

    def layers(self) -> dict[str, float]:
        """Return the share of each layer in the sum over all weights, 0 to 1, in the model's order.

        Tensors of one module are one layer; in deep models, modules of one block are. Sharded totals are refused.

        Examples:
            >>> ones = {name: torch.ones(2) for name in ("a.weight", "a.bias", "b.weight", "c.weight")}
            >>> Importance(totals=ones, count=1).layers()
            {'a': 0.5, 'b': 0.25, 'c': 0.25}
        """
        sums = self._sums()
        whole = sum(sums.values()) or 1.0
        parts: dict[str, tuple[float, float]] = {}
        for name, value in sums.items():
            layer = name.rpartition(".")[0] or name
            parts[layer] = (0.0, parts.get(layer, (0.0, 0.0))[1] + value / whole)
        return {name: share for name, (_, share) in display.fewer(parts).items()}

    def to_frame(self) -> Any:
        """Return a pandas data frame with a row for each tensor: its weights, their total and its share in the sum."""
        sums = self._sums()
        whole = sum(sums.values()) or 1.0
        rows = ((name, self.totals[name].numel(), value, value / whole) for name, value in sums.items())
        return display.frame(rows, ("tensor", "weights", "total", "share"))

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the share of each layer on matplotlib axes, new ones by default; return them."""
        from unlearnkit.utils.plotting import layer_shares  # noqa: PLC0415 - matplotlib takes a second

        return layer_shares(axes, self.layers(), unit=f"importance of the {self.role.value} set, %")

    def _sums(self) -> dict[str, float]:
        refuse_sharded(self.totals.values(), who="the shares of layers", instead="gather the totals first")
        return {name: float(total.sum(dtype=torch.float64)) for name, total in self.totals.items()}

    def merge(self, other: "Importance") -> "Importance":
        """Add the importance of further data: I(A) + I(B) = I(A ∪ B) for disjoint A and B.

        Both must have the same names, shapes, dtypes, device and kind. The role is kept when both have the same.
        """
        self.check_same_kind(other)
        return attrs.evolve(
            self,
            totals={name: total + other.totals[name] for name, total in self.totals.items()},
            role=self.role if self.role is other.role else Role.UNKNOWN,
            trail=self.trail.then(other.trail),
            **counts_of_sum([self, other]),
        )

    def subtract(self, other: "Importance") -> "Importance":
        """Subtract the importance of data that this one contains: I(D) − I(D_f) = I(D_r).

        Differences that are negative by rounding become 0; larger ones mean that ``other`` is not a part of this
        importance: a `MismatchError`. The ``relative_error`` is None unless both are exact. A warning says that squares
        of batch means cannot be subtracted, but for those of whole batches.
        """
        self.check_same_kind(other)
        problems = []
        if other.count > self.count or other.samples > self.samples:
            problems.append(f"expected a part of {self.count} terms, saw {other.count}")
        totals = {}
        for name, total in self.totals.items():
            rest, top = local(total) - local(other.totals[name]), extremes(total)[1]
            eps = coarsest_eps(f"{total.dtype} {self.fingerprint.precision}")
            # n terms of one sign, added in any order, are off by at most n·eps, relative. A gradient is off by eps of
            # the large ones beside it, from whose sums it was made: g² then by 2·g·eps·g_top.
            whole = local(total)
            allowed = (whole + 2 * (whole * top).sqrt() + eps * top) * eps * max(4, self.count, self.samples)
            too_low, _ = extremes(shard_like(torch.where(rest < -allowed, rest, 0), total))
            if too_low < 0:
                problems.append(f"{name}: the part is larger than the whole by {-too_low:.3g}")
            totals[name] = shard_like(rest.clamp_(min=0), total)
        raise_all(problems, where="Importance.subtract")
        if self.fingerprint.unit == "batch":
            warnings.warn(
                "Importance.subtract: these are squares of batch means, so the difference is that of the rest "
                "only where whole batches are taken out: use a per-sample estimator",
                UnlearnKitWarning,
                stacklevel=2,
            )
        return attrs.evolve(
            self,
            totals=totals,
            role=Role.UNKNOWN,
            trail=DataOrder(),
            **counts_of_difference(self, other),
        )

    __add__ = merge
    __sub__ = subtract

    def mean(self) -> dict[str, Tensor]:
        """Return totals / count by parameter name; a `MismatchError` when the count is 0."""
        terms = self.terms()
        return {name: total / terms for name, total in self.totals.items()}

    def terms(self) -> int:
        """Return ``count``, the divisor of the mean; a `MismatchError` when it is 0."""
        if self.count == 0:
            raise MismatchError("Importance.mean: expected at least one term, saw count = 0: estimate on data first")
        return self.count

    def unnormalised(self) -> "Importance":
        """Set ``count`` to 1, so that `mean` returns the totals: the notebook's un-normalised variant.

        Take it last: of a sum or difference of such importances, `mean` is something else.
        """
        return attrs.evolve(self, count=1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Importance":
        """Move the totals to a device, or convert them to float32 or float64; None keeps either."""
        moved = {name: total.to(device=device, dtype=dtype) for name, total in self.totals.items()}
        return attrs.evolve(self, totals=moved)

    def check_same_kind(self, other: "Importance") -> None:
        """Raise a `MismatchError` that lists every difference in names, shapes, dtypes, devices and fingerprints."""
        problems = [*self.name_problems(other.totals), *self._differences(other, self.fingerprint)]
        raise_all(problems, where="two importances do not match")

    def kind_problems(self, other: "Importance") -> list[str]:
        """List differences of fingerprints and, for terms of batches, of batch sizes.

        It is no difference that this one is exact and the other a `sampled_reference`: an edit may compare them.
        """
        mine = self.fingerprint
        return self._differences(other, mine if mine.sample else attrs.evolve(mine, sample=other.fingerprint.sample))

    def _differences(self, other: "Importance", mine: Fingerprint) -> list[str]:
        problems = mine.differences(other.fingerprint)
        if self.fingerprint.unit == "batch":
            problems += self.trail.differences(other.trail)
        return problems

    def name_problems(self, expected: Mapping[str, Tensor], *, shapes_only: bool = False) -> list[str]:
        """List differences of names, shapes, dtypes and devices; the last two unless ``shapes_only``."""
        problems = [f"{name}: expected, but missing" for name in expected if name not in self.totals]
        problems += [f"{name}: not expected" for name in self.totals if name not in expected]
        for name in (name for name in self.totals if name in expected):
            have, want = self.totals[name], expected[name]
            seen = placement(have)
            if have.shape != want.shape:
                problems.append(f"{name}: expected shape {tuple(want.shape)}, saw {tuple(have.shape)}")
            elif seen != placement(want):
                problems.append(f"{name}: expected a tensor that is {placement(want)}, saw one that is {seen}")
            elif not shapes_only and (have.dtype, have.device) != (want.dtype, want.device):
                seen = f"{have.dtype} on {have.device}"
                problems.append(f"{name}: expected {want.dtype} on {want.device}, saw {seen}: use .to()")
        return problems

    def check_values(self, *, who: str) -> None:
        """Raise an error that names NaN, infinite or negative totals, and their origin ``who``."""
        ranges = {name: extremes(t) for name, t in self.totals.items()}
        bad = [name for name, ends in ranges.items() if not all(map(math.isfinite, ends))]
        if bad:
            raise NonFiniteError(f"{who}: expected finite importances, saw NaN or infinity in {', '.join(bad)}")
        negative = [name for name, (lowest, _) in ranges.items() if lowest < 0]
        raise_all((f"{name}: expected importances ≥ 0, saw a negative one" for name in negative), where=who)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically: an existing one is replaced only when the new one is complete."""
        refuse_sharded(self.totals.values(), who=str(path), instead="use unlearnkit.importance.save_sharded")
        text = json.dumps(self.header(), default=attrs.asdict)
        metadata = {"format": _FORMAT, "importance": text, "digest": _digest(text, self.totals)}
        save_tensors(self.totals, path, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Importance":
        """Read what `save` wrote, on the CPU; a `StoreError` for a file that is missing, damaged or no importance."""
        totals, metadata = load_tensors(path, failure=": expected an importance file, saw")
        if metadata.get("format") != _FORMAT:
            raise StoreError(
                f"{path}: expected an importance file ({_FORMAT}), saw format {metadata.get('format')!r}: "
                "a model's checkpoint is not an importance"
            )
        text = metadata.get("importance", "")
        if metadata.get("digest") != _digest(text, totals):
            raise StoreError(f"{path}: expected the digest of what was written, saw another: the file is damaged")
        try:
            header = json.loads(text)
            header["fingerprint"] = cattrs.structure(header["fingerprint"], Fingerprint)
            found = cls.of_header(header, totals)
            found.check_values(who=str(path))
        except _DAMAGE as error:
            raise StoreError(f"{path}: the header or the totals are damaged: {error}") from error
        return found

    def header(self) -> dict[str, Any]:
        """Return everything but the totals, for a file."""
        return {
            "count": self.count,
            "samples": self.samples,
            "role": self.role.value,
            "fingerprint": self.fingerprint,
            "trail": {"sizes": dict(self.trail.sizes), "order": self.trail.order},
            "relative_error": self.relative_error,
        }

    @classmethod
    def of_header(cls, header: Mapping[str, Any], totals: Mapping[str, Tensor]) -> "Importance":
        """Make an importance of its `header` and its totals."""
        fingerprint, trail = header["fingerprint"], header["trail"]
        return cls(
            totals=totals,
            count=header["count"],
            samples=header["samples"],
            role=header["role"],
            fingerprint=fingerprint,
            trail=DataOrder(sizes=trail["sizes"], order=trail["order"]),
            relative_error=header["relative_error"],
        )


def counts_of_sum(parts: Sequence[Any]) -> dict[str, Any]:
    """Return count, samples and relative error of a sum of importances, or of their entries in a store."""
    return {
        "count": sum(part.count for part in parts),
        "samples": sum(part.samples for part in parts),
        "relative_error": error_of_sum((part.relative_error, part.samples) for part in parts),
    }


def counts_of_difference(whole: Any, part: Any) -> dict[str, Any]:
    """Return count, samples and relative error of a difference of importances, or of their entries in a store."""
    return {
        "count": whole.count - part.count,
        "samples": whole.samples - part.samples,
        "relative_error": error_of_difference(whole.relative_error, part.relative_error),
    }


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.blake2b(header.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        state.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        plain = tensor.detach().to("cpu").contiguous()
        state.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
