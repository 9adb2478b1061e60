"""Images in folders."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from unlearnkit.data import BySubclass, forget_split, image_folder
from unlearnkit.data.image_folder import read_image
from unlearnkit.utils.errors import ConfigurationError, StoreError, UnlearnKitWarning

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
    for file in (root / "train" / "dog").iterdir():
        file.unlink()
    emptied = image_folder(root)  # as erasure leaves it: the class keeps its number
    assert "dog" in emptied.train.class_names[emptied.train.target]
    assert emptied.train.class_names == emptied.test.class_names
    for file in (root / "test").rglob("*.png"):
        file.unlink()
    (root / "train" / "dog").rmdir()
    (root / "test" / "dog").rmdir()
    with pytest.raises(StoreError, match=r"test: there is no image: check the path"):
        image_folder(root)


def test_hidden_folders_are_no_classes(root, tmp_path):
    plain = image_folder(root).train.class_names
    for part in ("train", "test"):
        (root / part / ".ipynb_checkpoints").mkdir()
        (tmp_path / "hidden" / part / ".cache").mkdir(parents=True)
    assert image_folder(root).train.class_names == plain
    with pytest.raises(StoreError, match=r"hidden/train: there are hidden folders only: check the path"):
        image_folder(tmp_path / "hidden")


@pytest.mark.parametrize("folder_too", [True, False])
def test_a_class_without_test_images(root, folder_too):
    (root / "test" / "cat" / "0000.png").unlink()
    if folder_too:
        (root / "test" / "cat").rmdir()
    bundle = image_folder(root, groups=GROUPS, image_size=8)
    assert bundle.test.labels["fine"].tolist() == [0, 2]
    assert bundle.test.class_names == bundle.train.class_names
    split = forget_split(bundle, BySubclass(fine="cat"))
    assert (split.train.forget.tolist(), split.test.forget.tolist()) == ([2, 3], [])


def test_train_and_test_must_have_the_same_classes(root):
    (root / "test" / "dog").rename(root / "test" / "wolf")
    with pytest.raises(ConfigurationError, match=r"saw \['dog', 'wolf'\] in one of them only"):
        image_folder(root)


def test_groups_must_fit(root):
    with pytest.raises(ConfigurationError, match="cat: expected in one group, saw it in none"):
        image_folder(root, groups={"vehicle": ["car"], "animal": ["dog"]})


# --- unusual images ---------------------------------------------------------------------------------------------------


RED = (255, 0, 0)


def saved(path, image, **options):
    image.save(path, **options)
    return read_image(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_common_mode_is_read_as_rgb(tmp_path, mode, suffix):
    if suffix == "png" and mode in {"CMYK", "YCbCr"}:
        return  # PNG has no such images
    colour = {"L": (90, 90, 90), "LA": (90, 90, 90), "1": (255, 255, 255)}.get(mode, (200, 40, 40))
    image = Image.new("RGB", (3, 2), colour)
    seen = saved(tmp_path / f"a.{suffix}", image.quantize(4) if mode == "P" else image.convert(mode))
    assert (seen.dtype, seen.shape) == (torch.uint8, (3, 2, 3))
    assert (seen[:, 0, 0].int() - torch.tensor(colour).int()).abs().max() <= 3


def test_cmyk_photos_have_the_right_colours(tmp_path):
    seen = saved(tmp_path / "a.jpg", Image.new("RGB", (8, 8), (200, 40, 40)).convert("CMYK"), quality=95)
    assert (seen[:, 4, 4].int() - torch.tensor([200, 40, 40])).abs().max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_become_eight(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 12_850, 65_535]], dtype=np.uint16)
    seen = saved(tmp_path / f"a.{suffix}", Image.fromarray(values))
    assert seen[0].tolist() == seen[2].tolist() == [[0, 0, 1, 1, 50, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_photos_are_turned_upright(tmp_path, orientation, suffix):
    upright = Image.new("RGB", (16, 24))
    for box, colour in {(0, 0): (255, 0, 0), (8, 0): (0, 255, 0), (0, 12): (0, 0, 255)}.items():
        upright.paste(colour, (*box, box[0] + 8, box[1] + 12))
    undone = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # of Image.Transpose: how the camera stored it
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undone[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    seen = saved(tmp_path / f"a.{suffix}", stored, exif=exif, **({"quality": 100} if suffix != "png" else {}))
    assert seen.shape == (3, 24, 16)
    corners = seen[:, [4, 4, 20], [3, 12, 3]].T.float()
    assert (corners - 255 * torch.eye(3)).abs().max() < 40


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path):
    opaque = Image.new("RGBA", (2, 2), (10, 20, 30, 255))
    assert saved(tmp_path / "a.png", opaque)[:, 0, 0].tolist() == [10, 20, 30]
    opaque.putpixel((1, 1), (10, 20, 30, 254))
    palette = Image.new("P", (2, 2))
    one_colour = Image.new("RGB", (2, 2), RED)
    for image, options in ((opaque, {}), (palette, {"transparency": 0}), (one_colour, {"transparency": RED})):
        with pytest.raises(StoreError, match=r"cannot read the image .*b.png: expected opaque pixels, saw transparent"):
            saved(tmp_path / "b.png", image, **options)
    assert saved(tmp_path / "c.png", palette, transparency=7).shape == (3, 2, 2)  # no pixel has colour 7


@pytest.mark.parametrize("suffix", ["tif", "webp", "png"])
def test_images_of_several_frames_are_refused(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 255, 0))]
    with pytest.raises(StoreError, match="expected one image, saw 2: save the one that is meant alone"):
        saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(("dtype", "suffix"), [(np.int32, "tif"), (np.float32, "tif")])
def test_thirty_two_bits_are_refused(tmp_path, dtype, suffix):
    with pytest.raises(StoreError, match="expected 8 or 16 bits a channel, saw 32"):
        saved(tmp_path / f"a.{suffix}", Image.fromarray(np.ones((2, 2), dtype=dtype)))


def test_files_that_are_left_out_are_named(root):
    Image.new("RGB", (4, 4)).save(root / "train" / "car" / "a.gif")
    (root / "train" / "cat" / ".DS_Store").touch()
    with pytest.warns(UnlearnKitWarning, match=r"1 files were left out, such as .*a.gif: expected names that end with"):
        assert len(image_folder(root).train) == 6


def test_a_photo_with_previews_is_read(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8), RED).save(path, format="MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert read_image(path).shape == (3, 8, 8)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev", "pipe"])
def test_anything_but_a_file_is_not_read(tmp_path, device):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.png").symlink_to(tmp_path / device)
    with pytest.raises(StoreError, match=r"a.png: expected a file, saw a folder, a pipe or a device"):
        read_image(tmp_path / "a.png")


def changed(data, rng):
    """Change a file in one to five places: bits, bytes that come or go, a huge number, or the end cut off."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(data) + 1))
        kind = rng.integers(5)
        if kind == 0:
            data[at : at + 1] = bytes(byte ^ 1 << int(rng.integers(8)) for byte in data[at : at + 1])
        elif kind == 1:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 9))]
        elif kind == 3:
            data[at : at + 4] = b"\xff\xff\xff\x7f"
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, count, record_property):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    images = {"a.png": photo, "b.png": photo.quantize(8), "c.tif": photo, "d.jpg": photo.convert("CMYK")}
    images |= {"e.jpg": photo, "f.webp": photo, "g.bmp": photo, "h.ppm": photo}
    images["i.png"] = Image.fromarray(rng.integers(0, 2**16, (9, 9), dtype=np.uint16))
    exif = Image.Exif()
    exif[274] = 6
    contents = {}
    for name, image in images.items():
        image.save(tmp_path / name, **({"exif": exif} if name[2:] in {"jpg", "png", "webp"} else {}))
        contents[name] = (tmp_path / name).read_bytes()
    read, said = 0, []
    for number in range(count):
        name = list(contents)[number % len(contents)]
        (tmp_path / name).write_bytes(changed(contents[name], rng))
        try:
            x = read_image(tmp_path / name)
        except StoreError as error:
            said.append(str(error))
        else:
            read += (x.dtype, x.shape[0]) == (torch.uint8, 3)
    assert read + len(said) == count
    assert min(read, len(said)) > count / 20
    assert all(text.startswith("cannot read the image") and "\n" not in text for text in said)
    record_property("tried", ("mutated images", count))


def test_an_image_too_large_to_decode(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64), RED).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(StoreError, match=r"cannot read the image .*decompression bomb"):
        read_image(tmp_path / "a.png")
