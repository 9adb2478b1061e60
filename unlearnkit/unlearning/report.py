"""The report of an edit: changed weights by tensor, importances used, remarks and timings."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import attrs

from unlearnkit.importance.provenance import Fingerprint, error_text
from unlearnkit.utils import display
from unlearnkit.utils.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@final
@attrs.frozen(kw_only=True)
class TensorChange:
    """One parameter: its qualified name, number of weights, and how many of them have other bits than before."""

    name: str
    size: int
    changed: int

    @property
    def fraction(self) -> float:
        """Changed weights as a fraction of all, 0 to 1."""
        return self.changed / self.size if self.size else 0.0


@final
@attrs.frozen(kw_only=True)
class ReportedImportance:
    """One importance that an edit used, without its tensors."""

    role: str
    count: int
    samples: int
    batches: str
    order: str
    fingerprint: Fingerprint
    relative_error: float | None = None


@final
@attrs.frozen(kw_only=True, repr=False)
class Report:
    """The record of one edit; a notebook shows it as a sentence and a bar for each layer.

    Attributes:
        derived: Options that the method worked out from the importances: an adaptive threshold, say.
        tensors: One entry per trainable parameter.
        left_out: Names of the parameters that ``only`` or ``exclude`` left out.
        buffers_changed: Names of the buffers that have other bits than before; only methods that train change any.
        evidence: The importances it used.
        steps: The reports of the methods that it is made of, in order; none for most methods.
        remarks: Warnings in plain words: why nothing could be selected, say.
        seconds: Stage to wall-clock seconds.
        model_before: Digest of the weights before the edit; ``model_after`` after it.
        provider: Distribution and version that the method comes from, or "" when it was not found by a plugin manager.

    Examples:
        >>> report = Report(method="ssd", tensors=(TensorChange(name="w", size=4, changed=1),))
        >>> report
        Report(ssd changed 1 of 4 weights (25 %))
        >>> report.changed, report.size, report.fraction
        (1, 4, 0.25)
        >>> print(report.sentence())
        ssd changed 1 of 4 weights (25 %).
    """

    method: str
    options: Mapping[str, Any] = attrs.field(factory=dict)
    derived: Mapping[str, Any] = attrs.field(factory=dict)
    tensors: tuple[TensorChange, ...] = ()
    left_out: tuple[str, ...] = ()
    buffers_changed: tuple[str, ...] = ()
    evidence: tuple[ReportedImportance, ...] = ()
    steps: "tuple[Report, ...]" = ()
    remarks: tuple[str, ...] = ()
    seconds: Mapping[str, float] = attrs.field(factory=dict)
    model_before: str = ""
    model_after: str = ""
    provider: str = ""

    def __repr__(self) -> str:
        return f"Report({self._counts()})"

    def _repr_html_(self) -> str:
        bars = display.share_bars(self._shares(), name="layer", share="weights changed") if self.changed else ""
        words = (self.sentence(), *(self.remarks if self.changed else ()), *self.uncertainty())
        return display.paragraphs(*words) + bars

    def _shares(self) -> dict[str, float]:
        found = display.fewer({layer.name: (layer.size, layer.changed) for layer in self.layers()})
        return {name: changed / (size or 1) for name, (size, changed) in found.items()}

    def _counts(self) -> str:
        if not self.tensors:  # of a search without an edit, say
            return f"{self.method} changed nothing"
        if self.changed == 0:
            return f"{self.method} changed nothing: 0 of {self.size} weights"
        return f"{self.method} changed {self.changed} of {self.size} weights ({percent(self.fraction)})"

    @property
    def changed(self) -> int:
        """How many weights have other bits than before."""
        return sum(t.changed for t in self.tensors)

    @property
    def size(self) -> int:
        """How many trainable weights the model has."""
        return sum(t.size for t in self.tensors)

    @property
    def fraction(self) -> float:
        """Changed weights as a fraction of the trainable ones, 0 to 1."""
        return self.changed / self.size if self.size else 0.0

    def layers(self) -> tuple[TensorChange, ...]:
        """Add up the tensors of each module that has trainable parameters of its own, in the model's order.

        Examples:
            >>> weight, bias = (TensorChange(name=f"a.{name}", size=4, changed=1) for name in ("weight", "bias"))
            >>> Report(method="ssd", tensors=(weight, bias)).layers()
            (TensorChange(name='a', size=8, changed=2),)
        """
        found: dict[str, TensorChange] = {}
        for t in self.tensors:
            name = t.name.rpartition(".")[0] or t.name
            so_far = found.get(name, TensorChange(name=name, size=0, changed=0))
            found[name] = TensorChange(name=name, size=so_far.size + t.size, changed=so_far.changed + t.changed)
        return tuple(found.values())

    def sentence(self) -> str:
        """Return some sentences on what the edit did."""
        return " ".join([f"{self._counts()}.", *self._omission(), *(self.remarks if self.changed == 0 else ())])

    def _omission(self) -> tuple[str, ...]:
        shown = ", ".join(self.left_out[:3]) + (", …" if len(self.left_out) > 3 else "")
        number = f"{len(self.left_out)} parameter{'s' * (len(self.left_out) > 1)}"
        return (f"{number} left out: {shown}.",) if self.left_out else ()

    def uncertainty(self) -> tuple[str, ...]:
        """Return sentences on importances of a sample or with random numbers; none if all are exact and of all data."""
        sampled = [one for one in self.evidence if one.fingerprint.sample]
        sentences = [f"The {one.role} importance is of a sample: {one.fingerprint.sample}." for one in sampled]
        errors = [(error_text(one.relative_error), one.role) for one in self.evidence]
        estimated = [f"{error} ({role})" for error, role in errors if error]
        if estimated:
            known, where = ", ".join(estimated), "where its gradients are spread evenly over the batches."
            sentences.append(f"Importances are estimates: standard deviation of a weight's total {known}, {where}")
        return tuple(sentences)

    def to_frame(self) -> Any:
        """Return a pandas data frame with a row for each tensor: its weights, and how many of them changed."""
        rows = ((t.name, t.size, t.changed, t.fraction) for t in self.tensors)
        return display.frame(rows, ("tensor", "weights", "changed", "fraction"))

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the share of changed weights of each layer on matplotlib axes, new ones by default; return them."""
        from unlearnkit.utils.plotting import layer_shares  # noqa: PLC0415 - matplotlib takes a second

        return layer_shares(axes, self._shares(), unit="weights changed, %")

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts, lists, strings and numbers for JSON, derived numbers included; infinities as strings."""
        fields = attrs.asdict(self, value_serializer=lambda _, __, value: plain(value))
        parts = {"tensors": self.tensors, "layers": self.layers()}
        counted = {name: [{**attrs.asdict(t), "fraction": t.fraction} for t in some] for name, some in parts.items()}
        steps = [step.to_dict() for step in self.steps]
        return {
            **fields,
            **counted,
            "steps": steps,
            "changed": self.changed,
            "size": self.size,
            "fraction": self.fraction,
        }


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: infinities, such as α = inf, and what it does not know as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has neither
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str) or attrs.has(type(value)):
        return value
    return str(value)
