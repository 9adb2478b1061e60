"""What was done about a deletion request, in a form that shows when a byte of it was changed."""

from collections.abc import Mapping
from typing import Any, Literal, final

import attrs

from unlearnkit.utils.checksummed_json import seal_digest

FORMAT = "unlearnkit-receipt-2"
STATEMENT = (
    "This is approximate unlearning. The receipt says what was asked and what was done; it is no certificate of "
    "erasure: low accuracy on forgotten samples does not prove that they left no trace in the model."
)

Outcome = Literal["started", "forgotten", "rolled back", "nothing to forget", "restored", "purged", "measured again"]


@final
@attrs.frozen(kw_only=True)
class Receipt:
    """One entry of the record.

    Attributes:
        number: 1, 2, 3, …
        previous: Digest of the receipt before it; "" for the first.
        time: When it was written, UTC.
        outcome: What came of it. ``"rolled back"``: the edit was undone because it broke a limit.
        reason: Why, in words, where it was not simply forgotten.
        requests: The names under which it was asked for.
        samples: Salted hashes of the samples, sorted; no raw data.
        groups: Groups that were forgotten whole.
        model_before: Digest of the model's weights and buffers before.
        model_after: And after.
        model_file: Digest of the bytes of the file that holds the model after.
        patch_file: Digest of the bytes of the patch that leads back to the model before; "" where that was kept whole.
        edit: The method, its options and what the framework derived from them, the estimator's fingerprint, edited
            counts per parameter, remarks.
        before: Split to loss, accuracy and samples, before.
        after: And after.
        staleness: How old the importances were.
        seconds: Stage to seconds.
        peak_mib: Largest memory of the process, in MiB.
        seeds: Name to seed.
        versions: Of the libraries.
        statement: What this is and what it is not.
    """

    number: int
    previous: str
    time: str
    outcome: Outcome
    reason: str = ""
    requests: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    model_before: str = ""
    model_after: str = ""
    model_file: str = ""
    patch_file: str = ""
    edit: Mapping[str, Any] = attrs.field(factory=dict)
    before: Mapping[str, Any] = attrs.field(factory=dict)
    after: Mapping[str, Any] = attrs.field(factory=dict)
    staleness: str = ""
    seconds: Mapping[str, float] = attrs.field(factory=dict)
    peak_mib: float | None = None
    seeds: Mapping[str, int] = attrs.field(factory=dict)
    versions: Mapping[str, str] = attrs.field(factory=dict)
    statement: str = STATEMENT

    @property
    def digest(self) -> str:
        """Hash of everything in it, the previous receipt's digest included: 64 hexadecimal digits."""
        return seal_digest(self)

    def sentence(self) -> str:
        """Say what happened in one sentence.

        Returns:
            Number, requests and outcome.
        """
        asked = f" ({', '.join(self.requests)})" if self.requests else ""
        what = {
            "started": "the record was started",
            "forgotten": f"{len(self.samples)} samples were forgotten",
            "rolled back": "the edit was rolled back, and the model is as it was",
            "nothing to forget": "there was nothing to forget",
            "restored": "an earlier model was put back",
            "purged": "earlier models were deleted",
            "measured again": "the importances were measured again",
        }[self.outcome]
        return f"Receipt {self.number}{asked}: {what}{': ' if self.reason else ''}{self.reason}."
