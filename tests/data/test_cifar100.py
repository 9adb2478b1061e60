"""CIFAR-100, from a small archive in its own format."""

import functools
import hashlib
import http.server
import tarfile
import threading

import numpy as np
import pytest
import torch
from cifar_archive import COARSE_OF_FINE, META, part, write
from torchvision.datasets import CIFAR100

from unlearnkit.data import BySubclass, cifar100, forget_split
from unlearnkit.data.cifar100 import FINE_NAMES, SUPERCLASSES
from unlearnkit.utils.errors import ConfigurationError, StoreError

# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_is_20_times_5_and_agrees_with_the_published_numbers():
    assert len(FINE_NAMES) == len(set(FINE_NAMES)) == 100
    assert [len(members) for members in SUPERCLASSES.values()] == [5] * 20
    assert list(SUPERCLASSES) == sorted(SUPERCLASSES)
    order = list(SUPERCLASSES)
    coarse = {name: order.index(group) for group, members in SUPERCLASSES.items() for name in members}
    assert [coarse[name] for name in FINE_NAMES] == COARSE_OF_FINE


def test_rocket_is_69():
    assert FINE_NAMES[69] == "rocket"
    assert "rocket" in SUPERCLASSES["vehicles_2"]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_small_archive(tmp_path):
    contents = write(tmp_path)
    bundle = cifar100(tmp_path, image_size=None, verify=False)
    assert repr(bundle) == "DataBundle(CIFAR-100: train 5, test 2, target coarse of 20 classes)"
    assert bundle.train.labels["fine"].tolist() == [69, 0, 99, 69, 41]
    assert bundle.train.targets.tolist() == [19, 4, 13, 19, 19]
    x, fine, coarse = bundle.train[2]
    assert (int(fine), int(coarse)) == (99, 13)
    assert x.shape == (3, 32, 32)
    # The file has 1,024 red values row by row, then green, then blue.
    red = contents["train"]["data"][2].astype(np.float64)[33] / 255
    assert float(x[0, 1, 1]) == pytest.approx((red - 0.485) / 0.229, abs=1e-6)
    blue = contents["train"]["data"][2].astype(np.float64)[2048 + 31] / 255
    assert float(x[2, 0, 31]) == pytest.approx((blue - 0.406) / 0.225, abs=1e-6)


def test_images_are_resized_when_they_are_asked_for(tmp_path):
    write(tmp_path)
    train = cifar100(tmp_path, verify=False).train
    assert train[0][0].shape == (3, 224, 224)
    assert train.images.shape == (5, 3, 32, 32)
    assert train.images.dtype == torch.uint8


def test_fine_labels_as_the_target(tmp_path):
    write(tmp_path)
    bundle = cifar100(tmp_path, target="fine", verify=False)
    assert bundle.num_classes == 100
    assert [int(label) for label in bundle.train[0][1:]] == [19, 69]


def test_forget_the_rocket(tmp_path):
    write(tmp_path)
    bundle = cifar100(tmp_path, verify=False)
    for spec in (BySubclass(fine=69), BySubclass(fine="rocket")):
        split = forget_split(bundle, spec)
        assert split.train.forget.tolist() == [0, 3]
        assert split.test.forget.tolist() == [1]


# --- checksums and download -------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Publish the small archive on this machine as if it were the original."""
    source = tmp_path / "server"
    source.mkdir()
    write(source)
    archive = source / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source / "cifar-100-python", "cifar-100-python")

    def md5(path):
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    folder = source / "cifar-100-python"
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive))
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5(folder / "meta")})
    handler = functools.partial(Silent, directory=source)
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield source
        server.shutdown()
        thread.join()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *arguments):  # noqa: A002
        pass


def test_download_and_checksums(published, tmp_path):
    root = tmp_path / "fresh"
    root.mkdir()
    assert len(cifar100(root, download=True).train) == 5
    assert len(cifar100(root).train) == 5


def test_a_changed_file_fails_its_checksum(published):
    write(published, train=part([1, 2, 3]))
    with pytest.raises(StoreError, match=r"cannot get CIFAR-100 in .*server"):
        cifar100(published)
    assert len(cifar100(published, verify=False).train) == 3


def test_a_download_that_fails(published, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR100, "url", CIFAR100.url + ".absent")
    with pytest.raises(StoreError, match="cannot get CIFAR-100"):
        cifar100(tmp_path / "fresh", download=True)


def test_a_missing_archive(tmp_path):
    with pytest.raises(StoreError, match="download=True"):
        cifar100(tmp_path)
    with pytest.raises(StoreError, match=r"cannot read .*meta"):
        cifar100(tmp_path, verify=False)


# --- archives that are not CIFAR-100 ----------------------------------------------------------------------------------


def broken(**changes):
    return {"train": part([69, 0]) | changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (broken(coarse_labels=[18, 4]), "train: rocket is labelled vehicles_1, against the table"),
        (broken(fine_labels=[69]), r"fine_labels to be 2 whole numbers.*saw int64 of shape \(1,\)"),
        (broken(fine_labels=[69, 100]), "fine_labels between 0 and 99, saw 69 … 100"),
        (broken(coarse_labels=[-1, 4]), "coarse_labels between 0 and 19, saw -1 … 4"),
        (broken(coarse_labels=["a", "b"]), "coarse_labels to be 2 whole numbers"),
        (broken(data=[[0] * 3072] * 2), r"expected data of uint8 and shape \(n, 3072\), saw list"),
        (broken(data=np.zeros((2, 3072))), r"saw float64 of shape \(2, 3072\)"),
        (broken(data=np.zeros((2, 100), dtype=np.uint8)), r"saw uint8 of shape \(2, 100\)"),
        ({"train": part([])}, "at least 1"),
        ({"test": {"data": 1}}, r"test: expected a dict with data, fine_labels, coarse_labels, saw \['data'\]"),
        ({"meta": [1]}, "saw list: this is not CIFAR-100"),
        ({"meta": META | {"fine_label_names": list(FINE_NAMES)[::-1]}}, "fine_label_names: expected the 100 names"),
        ({"meta": META | {"coarse_label_names": []}}, "coarse_label_names: expected the 20 names"),
    ],
)
def test_archives_other_than_cifar100_are_refused(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(StoreError, match=message):
        cifar100(tmp_path, verify=False)


def test_pickle_that_runs_code_is_refused(tmp_path):
    write(tmp_path, train=print)
    with pytest.raises(StoreError, match=r"refused a pickle that asks for (__builtin__|builtins).print"):
        cifar100(tmp_path, verify=False)


def test_arguments_are_checked_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigurationError, match=r"target: expected one of \['fine', 'coarse'\], saw 'label'"):
        cifar100(tmp_path, target="label")
    with pytest.raises(ConfigurationError, match="image_size"):
        cifar100(tmp_path, image_size=0)
    with pytest.raises(ConfigurationError, match="verify: expected True together with download=True"):
        cifar100(tmp_path, download=True, verify=False)
