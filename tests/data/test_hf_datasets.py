"""Data sets of Hugging Face: from a folder, with columns and splits by name."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from unlearnkit.data import BySubclass, forget_split, hf_dataset, loader
from unlearnkit.experiments.provenance import data_digest
from unlearnkit.utils.errors import ConfigurationError, StoreError

FINE = ("cat", "dog", "car", "truck")


def pictures(count, seed=0):
    draw = np.random.default_rng(seed)
    return [Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = {"coarse": datasets.ClassLabel(names=["pet", "vehicle"]), "fine": datasets.ClassLabel(names=list(FINE))}
    features = datasets.Features({"img": datasets.Image(), **kinds, "kind": datasets.Value("string")})

    def part(count, seed):
        fine = [i % 4 for i in range(count)]
        columns = {"img": pictures(count, seed), "fine": fine, "coarse": [f // 2 for f in fine]}
        return datasets.Dataset.from_dict({**columns, "kind": [FINE[f] for f in fine]}, features=features)

    datasets.DatasetDict({"train": part(12, 0), "validation": part(8, 1)}).save_to_disk(tmp_path / "vehicles")
    return tmp_path / "vehicles"


COLUMNS = {"image": "img", "label": "coarse", "test": "validation"}


def test_images_and_labels_by_the_names_of_their_columns(saved):
    bundle = hf_dataset(str(saved), **COLUMNS, image_size=None, mean=[0.5] * 3, std=[0.25] * 3)
    assert repr(bundle) == "DataBundle(vehicles: train 12, test 8, target label of 2 classes)"
    assert bundle.train.class_names == {"label": ("pet", "vehicle")}
    assert bundle.train.targets.tolist() == [0, 0, 1, 1] * 3
    pixels = torch.from_numpy(np.array(pictures(12, 0)[5])).permute(2, 0, 1) / 255
    torch.testing.assert_close(bundle.train[5][0], (pixels - 0.5) / 0.25)


def test_fine_labels_can_be_forgotten(saved):
    bundle = hf_dataset(str(saved), **COLUMNS, fine="fine", image_size=4, on_device=True)
    assert bundle.train.kinds == ("fine", "coarse")
    split = forget_split(bundle, BySubclass(fine="truck"))
    assert split.train.forget.tolist() == [3, 7, 11]
    batch = next(iter(loader(bundle.train.subset([1, 2]), batch_size=2)))
    assert [labels.tolist() for labels in batch[1:]] == [[1, 2], [0, 1]]


def test_text_as_labels(saved):
    bundle = hf_dataset(str(saved), **{**COLUMNS, "label": "kind"}, image_size=4)
    assert bundle.train.class_names == {"label": tuple(sorted(FINE))}
    assert bundle.test.targets.tolist() == [1, 2, 0, 3] * 2


def test_the_digest_follows_the_content(saved):
    bundle = hf_dataset(str(saved), **COLUMNS, image_size=4)
    again = hf_dataset(str(saved), **COLUMNS, image_size=4)
    assert data_digest(bundle.train) == data_digest(again.train) != data_digest(bundle.train.subset(range(11)))
    assert torch.equal(pickle.loads(pickle.dumps(bundle.train))[3][0], bundle.train[3][0])  # for workers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": "image"}, "has no column 'image'; did you mean 'img'"),
        ({"label": "lable"}, "has no column 'lable'; Known: 'coarse', 'fine', 'img', 'kind'"),
        ({"fine": "finer"}, "has no column 'finer'; did you mean 'fine'"),
        ({"test": "test"}, "test: .* has no split 'test'; Known: 'train', 'validation'"),
        ({"image": "kind"}, "expected images in the column 'kind', saw Value"),
        ({"label": "img"}, "labels: label: expected whole numbers"),
    ],
)
def test_a_wrong_name_lists_the_known_ones(saved, options, words):
    with pytest.raises(ConfigurationError, match=words):
        hf_dataset(str(saved), **{**COLUMNS, **options})


def test_a_folder_that_is_no_data_set(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(StoreError, match="cannot load the data set"):
        hf_dataset(str(tmp_path))


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'unlearnkit\[datasets\]'"):
        hf_dataset("somewhere")
