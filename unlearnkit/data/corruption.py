"""Wrong labels or a trigger in a part of the training set, of which a share is known: what healing starts from."""

from collections.abc import Mapping
from typing import ClassVar, final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from unlearnkit.data.labelled import DataBundle, Images, LabelledImages
from unlearnkit.data.splits import ForgetSpec, Indices, Names
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.options import option

TRUE, STATE = "true", "corruption"
STATES = ("clean", "unknown", "known")


@final
@attrs.frozen(kw_only=True)
class Corruption:
    """Corrupts a share of the training samples, and marks a share of these as known.

    With ``kind="labels"`` each gets another label at random; with ``kind="trigger"`` each gets a square of the image's
    largest value in the lower right corner, and one label. Items become ``(x, …, true, corruption, label)``: the label
    before, and 0 for clean, 1 for corrupted and unknown, 2 for corrupted and known. The test set stays clean.

    Source: the setting of Goel et al. 2024 (Corrective Machine Unlearning); Gu et al. 2017 (BadNets) for the trigger.

    Examples:
        >>> from unlearnkit.data import digits
        >>> data = Corruption(share=0.2, known=0.5).apply(digits()).train
        >>> int((data.targets != data.labels["true"]).sum()), data.labels["corruption"].bincount().tolist()
        (269, [1078, 135, 134])
    """

    share: float = option(0.2, above=0, at_most=1, doc="of the training samples that are corrupted")
    known: float = option(0.5, above=0, at_most=1, doc="share of the corrupted samples that is known and forgotten")
    kind: str = option("labels", choices=("labels", "trigger"), doc="what is wrong with them")
    label: int = option(0, at_least=0, doc="of every sample with a trigger")
    size: int = option(3, at_least=1, doc="side of the trigger, in pixels")
    seed: int = option(0, at_least=0, doc="of the choice of samples and labels")

    def __str__(self) -> str:
        return f"{self.share:g} {self.kind}, {self.known:g} known"

    def apply(self, bundle: DataBundle) -> DataBundle:
        """Return the bundle with a corrupted training set; a `ConfigurationError` where no sample can be."""
        generator, data, classes = np.random.default_rng(self.seed), bundle.train, bundle.num_classes
        right = data.targets.numpy()
        possible = np.flatnonzero(right != self.label) if self.kind == "trigger" else np.arange(len(right))
        count = round(self.share * len(right))
        if classes < 2 or not 1 <= count <= len(possible):
            raise ConfigurationError(
                f"corrupted.share: expected 1 to {len(possible)} samples and 2 classes or more, saw {count} samples "
                f"and {classes} classes"
            )
        chosen = generator.permutation(possible)[:count]
        state = np.zeros(len(right), dtype=np.int64)
        state[chosen] = 1
        state[chosen[: max(1, round(self.known * count))]] = 2
        wrong = (right + generator.integers(1, classes, len(right))) % classes
        labels = np.where(state > 0, wrong if self.kind == "labels" else self.label, right)
        images = data.images
        if self.kind == "trigger":
            rows = torch.from_numpy(chosen) if data.rows is None else data.rows[torch.from_numpy(chosen)]
            images = _Triggered(images=images, rows=frozenset(rows.tolist()), size=self.size)
        train = _labelled(attrs.evolve(data, images=images), torch.from_numpy(labels), torch.from_numpy(state))
        test = _labelled(bundle.test, bundle.test.targets, torch.zeros(len(bundle.test), dtype=torch.int64))
        return attrs.evolve(bundle, train=train, test=test)


def _labelled(data: LabelledImages, labels: Tensor, state: Tensor) -> LabelledImages:
    """Replace the target, and add the labels before and the state as the last kinds but it."""
    others = {kind: some for kind, some in data.labels.items() if kind != data.target}
    names = {**data.class_names, STATE: STATES}
    if data.target in names:
        names[TRUE] = names[data.target]
    kinds = {**others, TRUE: data.targets, STATE: state, data.target: labels}
    return attrs.evolve(data, labels=kinds, class_names=names)


@final
@attrs.frozen(kw_only=True, eq=False)
class _Triggered:
    """Images, some of which have a square in the lower right corner."""

    images: Images
    rows: frozenset[int]
    size: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Tensor:
        image = self.images[index]
        if int(index) in self.rows:
            image = image.clone()
            image[..., -self.size :, -self.size :] = image.max()
        return image


@final
@attrs.frozen(kw_only=True)
class KnownCorrupted(ForgetSpec):
    """Forget the samples that `Corruption` marks as known.

    Examples:
        >>> KnownCorrupted().split({"corruption": np.array([0, 2, 1]), "label": np.array([0, 1, 0])}).forget
        array([1])
    """

    scenario: ClassVar[str] = "corrupted"
    carries_over: ClassVar[bool] = False

    @override
    def select(self, labels: Mapping[str, Indices], *, target: str, class_names: Names) -> NDArray[np.bool_]:
        if STATE not in labels:
            raise ConfigurationError(f"KnownCorrupted: expected labels of kind {STATE!r}, saw {list(labels)}")
        known: NDArray[np.bool_] = labels[STATE] == STATES.index("known")
        return known
