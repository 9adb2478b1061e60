"""The run manifest."""

import datetime as dt
import json
import math

import attrs
import pytest
import torch
from PIL import Image

from unlearnkit.data import ByClass, LabelledImages, digits, forget_split, image_folder
from unlearnkit.data.transforms import image_transform
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.provenance import data_digest, forget_record, manifest, versions


def test_data_digest_depends_on_labels_and_images():
    one, two = digits(seed=0).train, digits(seed=0).train
    assert data_digest(one) == data_digest(two)
    assert data_digest(digits(seed=1).train) != data_digest(one)
    assert data_digest(one.subset(range(100))) != data_digest(one)
    two.images.mul_(0.5)
    assert data_digest(two) != data_digest(one)


def test_images_of_numpy_have_a_digest():
    whole = digits().train
    arrays = [image.numpy() for image in whole.images]
    data = attrs.evolve(whole, images=arrays)
    assert data_digest(data) == data_digest(attrs.evolve(whole, images=[*whole.images]))


def test_what_is_forgotten():
    bundle = digits()
    record = forget_record(forget_split(bundle, ByClass(classes=3)).train)
    assert record["scenario"] == "full-class"
    assert (record["samples"], record["of"]) == (137, 1347)
    assert record["fraction"] == 137 / 1347
    assert record["digest"] != forget_record(forget_split(bundle, ByClass(classes=4)).train)["digest"]


def test_versions_include_everything_that_affects_the_bits():
    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert {"python", "unlearnkit", "torchvision", "numpy"} <= found.keys()


def test_equal_runs_have_equal_manifests_but_for_the_time():
    bundle = digits()
    one, two = (manifest(config={"seed": 0}, data=bundle.train, device=torch.device("cpu")) for _ in range(2))
    one.pop("finished")
    two.pop("finished")
    assert one == two
    assert one["config"] == {"seed": 0}
    assert one["device"].startswith("cpu (")


def test_a_manifest_holds_any_value_of_a_configuration_as_json():
    config = {"since": dt.date(2020, 1, 1), "alpha": math.inf, "sizes": (1, 2)}
    found = manifest(config=config, data=digits().train, device=torch.device("cpu"))
    assert json.loads(json.dumps(found))["config"] == {"since": "2020-01-01", "alpha": "inf", "sizes": [1, 2]}


# --- every sample -----------------------------------------------------------------------------------------------------


class OnDemand:
    """Images that are made when they are read; counts how often."""

    def __init__(self, tensors):
        self.tensors, self.read = tensors, 0

    def __len__(self):
        return len(self.tensors)

    def __getitem__(self, index):
        self.read += 1
        return self.tensors[index]


def labelled(images, **options):
    return LabelledImages(
        images=images, labels={"label": [i % 2 for i in range(len(images))]}, target="label", **options
    )


@pytest.mark.parametrize("kind", [lambda x: x, OnDemand, list])
def test_every_image_counts(kind):
    def digest_of(images, rows=None):
        data = labelled(kind(images))
        return data_digest(data if rows is None else data.subset(rows))

    images = torch.rand(200, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    usual = digest_of(images)
    assert digest_of(images.clone()) == usual
    seen = {usual}
    for index in range(200):
        changed = images.clone()
        changed[index, 0, 1, 1] += 1
        seen.add(digest_of(changed))
        assert (digest_of(changed, range(100)) == digest_of(images, range(100))) == (index >= 100)
    assert len(seen) == 201


def test_images_on_demand_are_read_once():
    data = labelled(OnDemand(torch.rand(100, 1, 2, 2)))
    digests = {data_digest(data) for _ in range(3)}
    assert len(digests) == 1
    assert data.images.read == 100 + 3 * 64


@pytest.mark.parametrize("on_device", [False, True])
def test_the_transform_counts(on_device):
    images = torch.randint(256, (4, 3, 4, 4), dtype=torch.uint8)
    sizes = [(4, 0.5), (8, 0.5), (4, 0.4)]
    transforms = [image_transform(size, mean=[mean] * 3, std=[0.2] * 3, on_device=on_device) for size, mean in sizes]
    assert len({data_digest(labelled(images, **chosen)) for chosen in transforms}) == 3


def test_every_file_counts(tmp_path):
    for part in ("train", "test"):
        for i in range(100):
            (tmp_path / part / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2), (i, 0, 0)).save(tmp_path / part / "ab"[i % 2] / f"{i:03}.png")
    usual = data_digest(image_folder(tmp_path).train)
    path = tmp_path / "train" / "b" / "033.png"
    before = path.read_bytes()
    Image.new("RGB", (2, 2), (34, 0, 0)).save(path)
    assert len(path.read_bytes()) == len(before)
    changed = data_digest(image_folder(tmp_path).train)
    path.write_bytes(before)
    assert data_digest(image_folder(tmp_path).train) == usual != changed


def test_retrained_models_and_trials_depend_on_all_data(digits_toml):
    experiment = Experiment.load(load_config(digits_toml))
    first = experiment.manifest()
    for part, key in (("train", "data_digest"), ("test", "test_data_digest")):
        data = getattr(experiment.bundle, part)
        data.images[data.rows[1]] += 0.01  # not among 64 evenly spaced ones
        second = experiment.manifest()
        assert second[key] != first[key]
