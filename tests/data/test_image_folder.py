"""Images in folders."""

import pytest
import torch
from PIL import Image

from unlearnkit.data import BySubclass, forget_split, image_folder
from unlearnkit.utils.errors import ConfigurationError, StoreError

COLOURS = {"car": (255, 0, 0), "cat": (0, 255, 0), "dog": (0, 0, 255)}
GROUPS = {"vehicle": ["car"], "animal": ["dog", "cat"]}


@pytest.fixture
def root(tmp_path):
    for part, count in (("train", 2), ("test", 1)):
        for name, colour in COLOURS.items():
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (6, 4), colour).save(folder / f"{i:04d}.png")
    return tmp_path


def test_labels_and_images(root):
    bundle = image_folder(root, image_size=8)
    assert (len(bundle.train), len(bundle.test)) == (6, 3)
    assert bundle.train.kinds == ("label",)
    assert bundle.train.class_names["label"] == ("car", "cat", "dog")
    assert bundle.train.targets.tolist() == [0, 0, 1, 1, 2, 2]
    x, label = bundle.test[1]
    assert int(label) == 1
    assert x.shape == (3, 8, 8)
    # Pure green: (0 − mean) / std in red and blue, (1 − mean) / std in green.
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0 - 0.406) / 0.225]
    torch.testing.assert_close(x.mean((1, 2)), torch.tensor(expected), rtol=0, atol=1e-5)


def test_groups_give_fine_and_coarse_labels(root):
    bundle = image_folder(root, groups=GROUPS, image_size=8)
    assert bundle.train.kinds == ("fine", "coarse")
    assert bundle.train.class_names["coarse"] == ("vehicle", "animal")
    assert bundle.train.targets.tolist() == [0, 0, 1, 1, 1, 1]
    split = forget_split(bundle, BySubclass(fine="cat"))
    assert split.train.forget.tolist() == [2, 3]
    assert split.test.forget.tolist() == [1]


def test_the_target_may_be_the_fine_labels(root):
    bundle = image_folder(root, groups=GROUPS, target="fine", image_size=8)
    assert bundle.train.kinds == ("coarse", "fine")
    assert bundle.num_classes == 3


def test_images_keep_their_size_when_none_is_given(root):
    assert image_folder(root, image_size=None).train[0][0].shape == (3, 4, 6)


def test_the_first_images_of_each_class(root):
    bundle = image_folder(root, groups=GROUPS, image_size=8, per_class=1, test_per_class=1)
    assert bundle.train.labels["fine"].tolist() == [0, 1, 2]
    assert [path[-12:] for path in bundle.train.images.paths] == ["car/0000.png", "cat/0000.png", "dog/0000.png"]
    assert len(image_folder(root, image_size=8, per_class=99).train) == 6


@pytest.mark.parametrize("key", ["per_class", "test_per_class"])
def test_at_least_one_image_of_each_class(root, key):
    with pytest.raises(ConfigurationError, match=f"{key}: expected at least 1 image a class.*saw 0"):
        image_folder(root, **{key: 0})


def test_images_kept_in_memory_are_read_once_and_are_the_same(root):
    lazy, kept = (image_folder(root, image_size=8, in_memory=flag) for flag in (False, True))
    expected = [lazy.train[i] for i in range(len(lazy.train))]
    for path in lazy.train.images.paths:
        Image.new("RGB", (6, 4), (0, 0, 0)).save(path)
    for i, item in enumerate(expected):
        assert all(torch.equal(one, other) for one, other in zip(kept.train[i], item, strict=True))
    assert not torch.equal(lazy.train[0][0], expected[0][0])


def test_images_of_several_sizes_cannot_be_kept_as_they_are(root):
    Image.new("RGB", (5, 5)).save(root / "train" / "car" / "0000.png")
    with pytest.raises(ConfigurationError, match="expected images of one size"):
        image_folder(root, image_size=None, in_memory=True)
    assert image_folder(root, image_size=8, in_memory=True).train[0][0].shape == (3, 8, 8)


def test_grey_images_become_rgb(root):
    Image.new("L", (4, 4), 255).save(root / "test" / "car" / "0000.png")
    x, _ = image_folder(root, image_size=None).test[0]
    assert x.shape == (3, 4, 4)


def test_images_are_read_lazily(root):
    (root / "train" / "car" / "0000.png").write_bytes(b"not an image")
    bundle = image_folder(root, groups=GROUPS)
    assert forget_split(bundle, BySubclass(fine="car")).train.forget.tolist() == [0, 1]
    with pytest.raises(StoreError, match=r"cannot read the image .*car/0000.png"):
        bundle.train[0]


def test_a_missing_folder(root, tmp_path):
    with pytest.raises(StoreError, match=r"one folder of images for each class in .*absent/train"):
        image_folder(tmp_path / "absent")
    for file in (root / "test" / "dog").iterdir():
        file.unlink()
    with pytest.raises(StoreError, match=r"test: .*dog.*check the path"):
        image_folder(root)


def test_train_and_test_must_have_the_same_classes(root):
    (root / "test" / "dog").rename(root / "test" / "wolf")
    with pytest.raises(ConfigurationError, match=r"saw \['dog', 'wolf'\] in one of them only"):
        image_folder(root)


def test_groups_must_fit(root):
    with pytest.raises(ConfigurationError, match="cat: expected in one group, saw it in none"):
        image_folder(root, groups={"vehicle": ["car"], "animal": ["dog"]})
