"""CIFAR-100 with its fine and its coarse labels, from pickles that cannot run code."""

import io
import pickle
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from unlearnkit.data.labelled import DataBundle, LabelledImages, Transform, coarse_of_fine
from unlearnkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_transform
from unlearnkit.utils.download import downloading
from unlearnkit.utils.errors import ConfigurationError, StoreError, raise_all

SUPERCLASSES: Mapping[str, tuple[str, ...]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""Coarse name to five fine names (Krizhevsky 2009), as in the archive: coarse label i is the i-th key."""

FINE_NAMES: tuple[str, ...] = tuple(sorted(name for members in SUPERCLASSES.values() for name in members))
"""The 100 fine names: fine label i is the i-th in alphabetical order, so rocket is 69."""

_NAMES = {"fine": FINE_NAMES, "coarse": tuple(SUPERCLASSES)}
_SHAPE = (3, 32, 32)


def cifar100(
    root: str | Path,
    *,
    download: bool = False,
    target: str = "coarse",
    image_size: int | None = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    on_device: bool = False,
    verify: bool = True,
) -> DataBundle:
    """Read CIFAR-100 as torchvision downloads it: 50,000 training and 10,000 test images, with fine and coarse labels.

    Images stay uint8 in memory (150 MB for training). Labels are checked against the published table.

    Args:
        root: The folder that holds ``cifar-100-python``, or that it is downloaded to.
        download: Download the archive (169 MB) when it is missing; needs ``verify``.
        target: The label kind to train on, last in an item: ``"coarse"`` (20 classes) or ``"fine"`` (100).
        image_size: See `imagenet_transform`.
        mean: Likewise; the default is ImageNet's, not CIFAR-100's.
        std: Likewise.
        on_device: Resize and normalise by `DeviceTransform`, a batch at a time: much faster.
        verify: Compare the files with their published checksums; False only for another archive in the same format.

    Raises:
        StoreError: The files are missing, damaged or not CIFAR-100.
        ConfigurationError: There is no such target or image size, or a download is not to be verified.
    """
    from torchvision.datasets import CIFAR100  # noqa: PLC0415 - torchvision takes a second

    if target not in _NAMES:
        raise ConfigurationError(f"target: expected one of {list(_NAMES)}, saw {target!r}")
    if download and not verify:
        raise ConfigurationError("verify: expected True together with download=True, saw False")
    transform = image_transform(image_size, mean=mean, std=std, on_device=on_device)
    if verify:
        waiting = downloading("CIFAR-100 (169 MB)", CIFAR100.url) if download else nullcontext()
        try:
            with waiting:
                CIFAR100(root, download=download)
        except (RuntimeError, OSError) as error:
            raise StoreError(
                f"cannot get CIFAR-100 in {Path(root).resolve()}: {error} (in Python: download=True; verify=False "
                "reads an archive in the same format that is not the original)"
            ) from error
    folder = Path(root) / CIFAR100.base_folder
    _check_names(folder / "meta")
    train, test = (_read(folder / part, target, transform) for part in ("train", "test"))
    return DataBundle(name="CIFAR-100", train=train, test=test)


def _check_names(path: Path) -> None:
    meta = _fields(path, "fine_label_names", "coarse_label_names")
    raise_all(
        (
            f"{kind}_label_names: expected the {len(names)} names {names[0]} … {names[-1]} of CIFAR-100 in order"
            for kind, names in _NAMES.items()
            if list(meta[f"{kind}_label_names"]) != list(names)
        ),
        where=str(path),
        error=StoreError,
    )


def _read(path: Path, target: str, transform: dict[str, Transform]) -> LabelledImages:
    entry = _fields(path, "data", "fine_labels", "coarse_labels")
    images = _images(entry["data"], path)
    labels = {kind: _labels(entry[f"{kind}_labels"], kind, len(images), path) for kind in _NAMES}
    _check_table(labels, path)
    return LabelledImages(images=images, labels=labels, target=target, class_names=_NAMES, **transform)


def _fields(path: Path, *keys: str) -> dict[str, Any]:
    entry = load_plain_pickle(path)
    if not isinstance(entry, dict) or not set(keys) <= entry.keys():
        seen = sorted(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise StoreError(f"{path}: expected a dict with {', '.join(keys)}, saw {seen}: this is not CIFAR-100")
    return entry


def _images(data: Any, path: Path) -> Tensor:
    width = int(np.prod(_SHAPE))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != width:
        seen = f"{data.dtype} of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise StoreError(f"{path}: expected data of uint8 and shape (n, {width}), saw {seen}")
    return torch.from_numpy(np.array(data)).reshape(-1, *_SHAPE)  # a copy: an unpickled array may be read-only


def _labels(values: Any, kind: str, samples: int, path: Path) -> Tensor:
    numbers = np.asarray(values)
    last = len(_NAMES[kind]) - 1
    if numbers.shape != (samples,) or not samples or not np.issubdtype(numbers.dtype, np.integer):
        raise StoreError(
            f"{path}: expected {kind}_labels to be {samples} whole numbers, one for each image (at least 1), "
            f"saw {numbers.dtype} of shape {numbers.shape}"
        )
    if numbers.min() < 0 or numbers.max() > last:
        raise StoreError(f"{path}: expected {kind}_labels between 0 and {last}, saw {numbers.min()} … {numbers.max()}")
    return torch.from_numpy(numbers.astype(np.int64))


def _check_table(labels: dict[str, Tensor], path: Path) -> None:
    expected = coarse_of_fine(SUPERCLASSES, FINE_NAMES)[labels["fine"]]
    wrong = torch.unique(torch.stack([labels["fine"], labels["coarse"]])[:, labels["coarse"] != expected], dim=1)
    coarse = _NAMES["coarse"]
    raise_all(
        (f"{FINE_NAMES[f]} is labelled {coarse[c]}, against the table of CIFAR-100" for f, c in wrong.T.tolist()),
        where=str(path),
        error=StoreError,
    )


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # How Python 3 writes bytes into an old pickle. Other codecs may decompress, so they are refused.
    if encoding != "latin1":
        raise StoreError(f"expected bytes encoded as latin1 in a pickle, saw {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    # How protocols before 3 write b"": bytes(). With an argument it could allocate any amount of memory.
    return b""


@final
class _Number:
    """What a pickle may ask for as a dtype: plain numbers."""

    def __init__(self, code: str, *copies: object) -> None:
        del copies
        if not re.fullmatch(r"[<>|=]?[biufc][1248]|c16|b1", code):
            raise StoreError(f"expected numbers in the arrays of a pickle, saw the dtype {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[3:5] != (None, None):
            raise StoreError("expected numbers in the arrays of a pickle, saw a dtype with fields")
        self.dtype = self.dtype.newbyteorder(state[1])


@final
class _Array:
    """What a pickle may make as an array: numbers from bytes that stand in the file."""

    def __init__(self) -> None:
        self.values = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, number, fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else bytes(content)
        values = np.frombuffer(content, number.dtype)
        self.values = values.reshape(shape, order="F") if fortran else values.reshape(shape)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    del kind, shape, code
    return _Array()


def _from_buffer(content: Any, number: _Number, shape: Any, order: str) -> _Array:
    found = _Array()
    found.__setstate__((1, shape, number, order == "F", content))
    return found


_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Number,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}
_DAMAGE: tuple[type[Exception], ...] = (
    *(pickle.UnpicklingError, EOFError, ArithmeticError, LookupError, ValueError, TypeError, AttributeError),
    *(struct.error, RecursionError, MemoryError, AssertionError),
)


@final
class _PlainUnpickler(pickle._Unpickler):  # noqa: SLF001 - the one in C allocates what a file asks for
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        allowed = _ALLOWED.get((module, name))
        if allowed is None:
            asked = ascii(f"{module}.{name}")[1:-1]
            raise StoreError(
                f"refused a pickle that asks for {asked}: expected numbers, text, lists, dicts and numpy arrays only; "
                "a file that asks for more can run any code, so get it from somewhere else"
            )
        return allowed


def _plain(value: Any) -> Any:
    """Replace the stand-ins by arrays."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(map(_plain, value))
    return value.values if isinstance(value, _Array) else value


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle without running anything that it asks for."""
    if path.exists() and not path.is_file():
        raise StoreError(f"{path}: expected a file, saw a folder, a pipe or a device")
    try:
        return _plain(_PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load())
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    except _DAMAGE as error:
        said = ascii(str(error))[1:-1]  # one line, whatever the file holds
        raise StoreError(f"{path} is damaged or not a pickle: {said}: get the file again") from error
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error
