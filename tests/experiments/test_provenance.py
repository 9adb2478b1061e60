"""The run manifest."""

import torch

from unlearnkit.data import ByClass, digits, forget_split
from unlearnkit.experiments.provenance import data_digest, forget_record, manifest, versions


def test_data_digest_depends_on_labels_and_images():
    one, two = digits(seed=0).train, digits(seed=0).train
    assert data_digest(one) == data_digest(two)
    assert data_digest(digits(seed=1).train) != data_digest(one)
    assert data_digest(one.subset(range(100))) != data_digest(one)
    two.images.mul_(0.5)
    assert data_digest(two) != data_digest(one)


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
