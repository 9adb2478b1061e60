"""The importance of a reference set from a random sample of the retain set, with the forget set exact."""

import attrs

from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import Role
from unlearnkit.utils.errors import ConfigurationError


def sampled_reference(sample: Importance, *, retained: int, seed: int, forget: Importance | None = None) -> Importance:
    """Scale the importance of samples that were drawn from the retain set up to all of it, and add the forget set.

    In the means this is F_D = p·F_f + (1 − p)·F_s, p = |D_f|/|D|, where F_s is that of the sample; without ``forget``
    it is F_s. The fingerprint says what was drawn, unless it was all: the result cannot be added to that of a full set.

    Args:
        sample: Its importance, one term per sample.
        retained: How many samples the retain set has, of which it was drawn.
        seed: That of the draw, for the fingerprint.
        forget: Importance of the forget set.

    Examples:
        >>> import torch
        >>> sample = Importance(totals={"w": torch.tensor([2.0])}, count=2, samples=2)
        >>> forget = Importance(totals={"w": torch.tensor([5.0])}, count=1, samples=1)
        >>> found = sampled_reference(sample, retained=9, seed=0, forget=forget)
        >>> found.mean()["w"], found.fingerprint.sample
        (tensor([1.4000]), '2 of 9 retained samples, seed 0')
    """
    if sample.fingerprint.unit == "batch":
        raise ConfigurationError(
            "a reference from a sample: expected an estimator with one term per sample, saw "
            f"{sample.fingerprint.estimator!r}, whose terms are of batches"
        )
    if not 0 < sample.samples <= retained:
        raise ConfigurationError(f"a sample of the retain set: expected 1 to {retained} samples, saw {sample.samples}")
    drawn = f"{sample.samples} of {retained} retained samples, seed {seed}"
    sample = attrs.evolve(
        sample,
        totals={name: total * (retained / sample.samples) for name, total in sample.totals.items()},
        count=retained,
        role=Role.RETAIN,
        fingerprint=attrs.evolve(sample.fingerprint, sample=drawn if sample.samples < retained else ""),
    )
    if forget is None:
        return sample
    marked = attrs.evolve(forget, fingerprint=attrs.evolve(forget.fingerprint, sample=sample.fingerprint.sample))
    return attrs.evolve(marked.merge(sample), role=Role.FULL)
