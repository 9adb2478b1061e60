"""Images with labels, and training and test sets that belong together."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from unlearnkit.data import ByClass, ByIndex, BySubclass, DataBundle, LabelledImages, forget_split
from unlearnkit.utils.errors import ConfigurationError

IMAGES = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1)


def labelled(fine=(2, 0, 1, 2), coarse=(1, 0, 0, 1), **more):
    options = {"images": IMAGES[: len(fine)], "target": "coarse"}
    return LabelledImages(labels={"coarse": coarse, "fine": fine}, **(options | more))


class Unreadable:
    """Images that must not be touched."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise AssertionError("an image was loaded")


def test_items_have_the_target_last():
    data = labelled()
    x, fine, coarse = data[0]
    assert (int(x), int(fine), int(coarse)) == (0, 2, 1)
    assert data.kinds == ("fine", "coarse")
    assert labelled(target="fine").kinds == ("coarse", "fine")
    assert labelled(target="fine")[0][-1] == 2


def test_batches_are_the_notebooks():
    x, fine, coarse = next(iter(DataLoader(labelled(), batch_size=3)))
    assert x.shape == (3, 1, 1, 1)
    assert x.dtype == torch.uint8
    assert fine.tolist() == [2, 0, 1]
    assert coarse.tolist() == [1, 0, 0]
    assert coarse.dtype == torch.int64


def test_the_transform_is_applied_to_each_image():
    data = labelled(transform=lambda image: image.float() * 10)
    assert [float(data[i][0]) for i in range(4)] == [0.0, 10.0, 20.0, 30.0]
    assert IMAGES.flatten().tolist() == [0, 1, 2, 3]


def test_labels_can_be_read_without_images():
    data = labelled(images=Unreadable())
    assert data.targets.tolist() == [1, 0, 0, 1]
    assert data.labels["fine"].tolist() == [2, 0, 1, 2]
    assert len(data.subset([1])) == 1
    assert forget_split(DataBundle(name="x", train=data, test=data), ByClass(classes=1)).train.samples == 4


def test_the_number_of_classes():
    assert labelled().num_classes == 2
    assert labelled(class_names={"coarse": ["a", "b", "c"]}).num_classes == 3


def test_a_subset_shares_its_images():
    data = labelled()
    part = data.subset(np.array([3, 1]))
    assert part.images is data.images
    assert [int(x) for x, *_ in (part[0], part[1])] == [3, 1]
    assert part.labels["fine"].tolist() == [2, 0]
    assert part.subset([1])[0][0] == 1
    assert len(part) == 2


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.data())
def test_a_subset_of_a_subset_is_a_subset(data):
    first = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    second = data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1, max_size=6))
    twice = labelled().subset(first).subset(second)
    once = labelled().subset([first[i] for i in second])
    for i in range(len(second)):
        assert [int(v) for v in twice[i]] == [int(v) for v in once[i]]


def test_it_can_be_pickled_for_workers():
    copy = pickle.loads(pickle.dumps(labelled().subset([2])))
    assert [int(v) for v in copy[0]] == [2, 1, 0]


def test_the_repr_is_short():
    assert repr(labelled()) == "LabelledImages(4 samples, labels fine, coarse)"


@pytest.mark.parametrize("index", [[4], [-1], [0, 4]])
def test_a_subset_out_of_range(index):
    with pytest.raises(ConfigurationError, match="expected indices between 0 and 3"):
        labelled().subset(index)


@pytest.mark.parametrize("index", [[], [0.5], [[0]], [True, False]])
def test_subset_indices_must_be_integers(index):
    with pytest.raises(ConfigurationError, match="at least one whole number in one dimension"):
        labelled().subset(index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "label"}, "expected one of the label kinds .*, saw 'label'"),
        ({"images": IMAGES[:3]}, "expected a label for each of 3 images, saw 4"),
        ({"rows": [0, 1, 2, 9]}, "rows: expected image numbers between 0 and 3"),
        ({"coarse": (0, 0, -1, 0)}, "coarse: expected labels between 0 and 0, saw -1 … 0"),
        ({"class_names": {"fine": ["a"]}}, "fine: expected labels between 0 and 0, saw 0 … 2"),
        ({"class_names": {"coarse": [101]}}, "class_names: expected text for each class of 'coarse', saw 101"),
        ({"coarse": (0, 0, 1)}, "labels: expected one label of each kind"),
    ],
)
def test_mismatched_inputs_are_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        labelled(**change)


# --- bundles ----------------------------------------------------------------------------------------------------------


def bundle():
    return DataBundle(name="toy", train=labelled(), test=labelled(fine=(1, 0), coarse=(0, 0)))


def test_repr_of_a_bundle():
    assert repr(bundle()) == "DataBundle(toy: train 4, test 2, target coarse of 2 classes)"
    assert bundle().num_classes == 2


def test_a_bundle_must_belong_together():
    with pytest.raises(ConfigurationError) as caught:
        DataBundle(name="toy", train=labelled(), test=labelled(target="fine", class_names={"fine": "abc"}))
    assert "label kinds: expected the same" in str(caught.value)
    assert "class names: expected the same" in str(caught.value)


def test_forget_a_class_of_both_sets_even_where_the_test_set_lacks_it():
    both = forget_split(bundle(), ByClass(classes=1))
    assert both.train.forget.tolist() == [0, 3]
    assert both.test.forget.tolist() == []


def test_forget_a_subclass_of_both_sets():
    both = forget_split(bundle(), BySubclass(fine=1))
    assert both.train.forget.tolist() == [2]
    assert both.test.forget.tolist() == [0]
    assert bundle().test.subset(both.test.forget)[0][1] == 1


def test_forget_indices_of_the_training_set_only():
    both = forget_split(bundle(), ByIndex(indices=[3]))
    assert both.train.forget.tolist() == [3]
    assert both.test.forget.tolist() == []
    assert both.test.samples == 2


def test_forgetting_uses_the_names_of_the_bundle():
    named = DataBundle(
        name="toy",
        train=labelled(class_names={"coarse": ["fruit", "vehicle"]}),
        test=labelled(class_names={"coarse": ["fruit", "vehicle"]}),
    )
    assert forget_split(named, ByClass(classes="vehicle")).test.forget.tolist() == [0, 3]
    with pytest.raises(ConfigurationError, match=r"between 0 and 1 \(fruit … vehicle\), saw 2"):
        forget_split(named, ByClass(classes=2))
