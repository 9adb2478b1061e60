"""Forget specifications, and the forget and retain parts."""

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.data import ByClass, ByIndex, BySubclass, ForgetSpec, Split
from unlearnkit.data.splits import label_arrays, matching_rows, split_of
from unlearnkit.utils.errors import ConfigurationError, StoreError

COARSE = {"fine": np.array([0, 1, 2, 3, 2]), "coarse": np.array([0, 0, 1, 1, 1])}
NAMES = {"fine": ["apple", "pear", "car", "rocket"], "coarse": ["fruit", "vehicle"]}


# --- worked examples --------------------------------------------------------------------------------------------------


def test_by_class():
    split = ByClass(classes=[0, 2]).split({"label": np.array([0, 1, 2, 1, 0])})
    assert split.forget.tolist() == [0, 2, 4]
    assert split.retain.tolist() == [1, 3]
    assert split.scenario == "full-class"
    assert split.samples == 5


def test_by_class_counts_the_target():
    split = ByClass(classes=1).split(COARSE, target="coarse")
    assert split.forget.tolist() == [2, 3, 4]
    assert ByClass(classes=1).split(COARSE, target="fine").forget.tolist() == [1]


def test_the_last_label_kind_is_the_target_by_default():
    assert ByClass(classes=1).split(COARSE).forget.tolist() == [2, 3, 4]


def test_by_subclass():
    split = BySubclass(fine=2).split(COARSE, target="coarse")
    assert split.forget.tolist() == [2, 4]
    assert split.scenario == "sub-class"


def test_by_subclass_with_another_name_for_the_fine_labels():
    labels = {"breed": COARSE["fine"], "animal": COARSE["coarse"]}
    assert BySubclass(fine=3, kind="breed").split(labels).forget.tolist() == [3]


def test_by_index_sorts():
    split = ByIndex(indices=[4, 0]).split({"label": np.arange(5)})
    assert split.forget.tolist() == [0, 4]
    assert split.retain.tolist() == [1, 2, 3]
    assert split.scenario == "random"


def test_classes_by_name():
    assert ByClass(classes="vehicle").split(COARSE, class_names=NAMES).forget.tolist() == [2, 3, 4]
    assert BySubclass(fine=["rocket", 0]).split(COARSE, class_names=NAMES).forget.tolist() == [0, 3]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_may_be_tensors(dtype):
    split = ByClass(classes=1).split({"label": torch.tensor([0, 1, 1], dtype=dtype)})
    assert split.forget.tolist() == [1, 2]


def test_values_are_comparable_and_short():
    assert ByClass(classes=3) == ByClass(classes=[3]) == ByClass(classes=np.array([3]))
    assert ByIndex(indices=[1, 2]) == ByIndex(indices=torch.tensor([1, 2]))
    assert repr(ByIndex(indices=range(1000))) == "ByIndex(1000 indices)"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ByClass(classes=3).classes = (4,)


# --- the test set -----------------------------------------------------------------------------------------------------


def test_class_spec_applies_to_other_data():
    assert ByClass(classes=1).split_unseen({"label": np.array([1, 0])}).forget.tolist() == [0]
    assert BySubclass(fine=3).split_unseen(COARSE).forget.tolist() == [3]


def test_index_spec_does_not_apply_to_other_data():
    split = ByIndex(indices=[0, 99]).split_unseen({"label": np.array([1, 0])})
    assert split.forget.tolist() == []
    assert split.retain.tolist() == [0, 1]


def test_unseen_data_may_lack_the_class_or_hold_nothing_else():
    names = {"label": ["a", "b"]}
    assert ByClass(classes=1).split_unseen({"label": np.array([0])}, class_names=names).forget.size == 0
    assert ByClass(classes=1).split_unseen({"label": np.array([1])}, class_names=names).retain.size == 0


# --- Split ------------------------------------------------------------------------------------------------------------


def test_a_split_is_int64_and_indexes_tensors_without_a_warning():
    split = split_of(np.array([True, False, True]), scenario="random")
    assert split.forget.dtype == split.retain.dtype == np.int64
    assert torch.arange(3)[split.forget].tolist() == [0, 2]
    assert repr(split) == "Split(random: forget 2 of 3)"


@pytest.mark.parametrize(
    ("forget", "retain", "message"),
    [
        ([1, 0], [2], "forget: expected indices in rising order"),
        ([0], [2, 2], "retain: expected indices in rising order"),
        ([0], [2], "each index 0 … 1 once"),
        ([0, 1], [1], "each index 0 … 2 once"),
    ],
)
def test_a_split_must_hold_each_index_once(forget, retain, message):
    with pytest.raises(ConfigurationError, match=message):
        Split(forget=forget, retain=retain, scenario="random")


def test_different_forget_sets_have_different_digests():
    def split(mask):
        return split_of(np.array(mask, dtype=bool), scenario="random").digest()

    assert split([1, 0, 0]) == split([1, 0, 0])
    assert len({split([1, 0, 0]), split([0, 1, 0]), split([1, 0]), split([1, 1, 0])}) == 4
    assert len(split([1, 0])) == 32


# --- an oracle that loops over the samples ----------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sets(st.integers(0, 3), min_size=1))
def test_by_class_agrees_with_a_loop(labels, classes):
    expected = [i for i, label in enumerate(labels) if label in classes]
    spec, names = ByClass(classes=classes), {"label": ["a", "b", "c", "d"]}
    split = spec.split_unseen({"label": np.array(labels)}, class_names=names)
    assert split.forget.tolist() == expected
    assert split.retain.tolist() == [i for i in range(len(labels)) if i not in expected]
    if 0 < len(expected) < len(labels):
        assert spec.split({"label": np.array(labels)}, class_names=names).digest() == split.digest()
    else:
        with pytest.raises(ConfigurationError, match="expected at least one sample"):
            spec.split({"label": np.array(labels)}, class_names=names)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.permutations(range(8)), st.integers(1, 7))
def test_by_index_does_not_depend_on_the_order_given(order, count):
    labels = {"label": np.zeros(8, dtype=int)}
    one, other = ByIndex(indices=order[:count]).split(labels), ByIndex(indices=order[:count][::-1]).split(labels)
    assert one.forget.tolist() == other.forget.tolist() == sorted(order[:count])


# --- files ------------------------------------------------------------------------------------------------------------


def test_indices_from_a_file(tmp_path):
    path = tmp_path / "forget.txt"
    path.write_text("# chosen by hand\n7\n\n3  # a duplicate of 4\n")
    assert ByIndex.from_file(path) == ByIndex(indices=[7, 3])


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "forget.txt"
    path.write_text("1\n2.5\n\nrocket\n")
    with pytest.raises(StoreError, match=r"forget.txt") as caught:
        ByIndex.from_file(path)
    assert "line 2: expected a whole number, saw '2.5'" in str(caught.value)
    assert "line 4: expected a whole number, saw 'rocket'" in str(caught.value)


def test_a_missing_or_empty_file(tmp_path):
    with pytest.raises(StoreError, match=r"cannot read indices from .*absent"):
        ByIndex.from_file(tmp_path / "absent")
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ConfigurationError, match=r"at least one index, saw none"):
        ByIndex.from_file(tmp_path / "empty")


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_empty_forget_set_is_refused():
    with pytest.raises(ConfigurationError, match=r"ByClass\(classes=\(1,\)\).*saw none among 2"):
        ByClass(classes=1).split({"label": np.array([0, 2])})


def test_an_empty_retain_set_is_refused():
    with pytest.raises(ConfigurationError, match="expected at least one sample to retain, saw all 2"):
        ByIndex(indices=[0, 1]).split({"label": np.array([0, 2])})


def test_class_out_of_range_names_the_range():
    with pytest.raises(ConfigurationError, match=r"ByClass coarse: expected a class between 0 and 1, saw 7"):
        ByClass(classes=7).split(COARSE)
    with pytest.raises(ConfigurationError, match=r"between 0 and 3 \(apple … rocket\), saw -1"):
        BySubclass(fine=-1).split(COARSE, class_names=NAMES)


def test_misspelt_class_suggests_the_closest_name():
    with pytest.raises(ConfigurationError, match=r"no class is named 'rockt': did you mean 'rocket'"):
        BySubclass(fine="rockt").split(COARSE, class_names=NAMES)
    with pytest.raises(ConfigurationError, match="no class is named 'zzz': give a number between 0 and 3"):
        BySubclass(fine="zzz").split(COARSE)


def test_all_bad_classes_are_listed_at_once():
    with pytest.raises(ConfigurationError) as caught:
        ByClass(classes=[0, 8, 9]).split(COARSE)
    assert "saw 8" in str(caught.value)
    assert "saw 9" in str(caught.value)


@pytest.mark.parametrize("value", [[], True, 1.5, [1.0], [None]])
def test_classes_must_be_numbers_or_names(value):
    with pytest.raises((ConfigurationError, TypeError)):
        ByClass(classes=value)


def test_a_subclass_needs_fine_labels_beside_the_target():
    with pytest.raises(ConfigurationError, match="expected labels of kind 'fine' beside the target 'label'"):
        BySubclass(fine=0).split({"label": np.array([0, 1])})
    with pytest.raises(ConfigurationError, match="use ByClass"):
        BySubclass(fine=0).split(COARSE, target="fine")


def test_a_subclass_must_lie_in_one_class():
    labels = {"fine": np.array([0, 0, 1]), "coarse": np.array([0, 1, 1])}
    with pytest.raises(ConfigurationError, match="fine class 0: expected to lie in one coarse class, saw 2"):
        BySubclass(fine=0).split(labels)


def test_indices_out_of_range_or_twice():
    with pytest.raises(ConfigurationError) as caught:
        ByIndex(indices=[0, 0, -1, 5]).split({"label": np.zeros(5, dtype=int)})
    assert "expected indices between 0 and 4, saw -1, 5" in str(caught.value)
    assert "expected each index once, saw 0 more than once" in str(caught.value)


def test_long_lists_of_bad_indices_are_truncated():
    with pytest.raises(ConfigurationError, match="saw 2, 3, 4, 5, 6 and 93 more"):
        ByIndex(indices=range(100)).split({"label": np.zeros(2, dtype=int)})


@pytest.mark.parametrize("value", [[0.5], [[1]], ["a"]])
def test_indices_must_be_integers(value):
    with pytest.raises(ConfigurationError, match="whole numbers in one dimension"):
        ByIndex(indices=value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "n ≥ 1 samples"),
        ({"label": np.array([], dtype=int)}, "n ≥ 1 samples"),
        ({"label": np.array([0.5])}, "label: expected whole numbers of shape"),
        ({"label": np.zeros((2, 2), dtype=int)}, r"saw int64 of shape \(2, 2\)"),
        ({"a": np.array([0]), "b": np.array([0, 1])}, "{'a': 1, 'b': 2}"),
    ],
)
def test_labels_are_checked(labels, message):
    with pytest.raises(ConfigurationError, match=message):
        label_arrays(labels)


def test_an_unknown_target():
    with pytest.raises(ConfigurationError, match=r"expected one of the label kinds .*, saw 'class'"):
        ByClass(classes=0).split(COARSE, target="class")


def test_a_wrong_select_of_a_subclass_is_named():
    @attrs.frozen(kw_only=True)
    class Wrong(ForgetSpec):
        scenario = "random"
        carries_over = False

        def select(self, labels, *, target, class_names):  # noqa: ARG002
            return np.array([0, 1])

    with pytest.raises(ConfigurationError, match=r"Wrong.select must return a bool array of shape \(5,\)"):
        Wrong().split(COARSE)


def test_a_number_that_is_the_name_of_another_class_is_refused():
    folders = {"label": [str(i) for i in sorted(range(1, 12), key=str)]}  # 1, 10, 11, 2, …
    labels = {"label": np.arange(11)}
    assert ByClass(classes="10").split(labels, class_names=folders).forget.tolist() == [1]
    assert ByClass(classes=0).split(labels, class_names=folders).forget.tolist() == [0]
    for number in (1, 2, 10):
        with pytest.raises(
            ConfigurationError, match=rf"{number} is the name of another class: write '{number}', in quo"
        ):
            ByClass(classes=number).split(labels, class_names=folders)
    padded = {"label": ["01", "02", "03"]}
    with pytest.raises(ConfigurationError, match="2 is the name of another class: write '02'"):
        ByClass(classes=2).split({"label": np.arange(3)}, class_names=padded)
    fine = {"fine": ["1", "0"], "coarse": ["a", "b"]}
    with pytest.raises(ConfigurationError, match="1 is the name of another class"):
        BySubclass(fine=1).split({"fine": np.array([0, 1]), "coarse": np.array([0, 1])}, class_names=fine)


def test_indices_with_a_byte_order_mark(tmp_path):
    (tmp_path / "indices.txt").write_bytes(b"\xef\xbb\xbf7\r\n3\r\n")
    assert ByIndex.from_file(tmp_path / "indices.txt") == ByIndex(indices=[7, 3])


CLASSES = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(np.array)


@given(labels=CLASSES, like=CLASSES, seed=st.integers(0, 3))
def test_matching_rows_have_the_shares_of_the_other_labels(labels, like, seed):
    rows = matching_rows(labels, like, seed=seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    drawn, wanted, there = (np.bincount(each, minlength=4) for each in (labels[rows], like, labels))
    wanted[there == 0] = 0
    if not wanted.any():
        assert not rows.size
        return
    scale = np.min(there[wanted > 0] / wanted[wanted > 0])
    assert np.abs(drawn - scale * wanted).max() <= 0.5
    assert (drawn == there)[wanted > 0].any(), "more could be drawn"
