"""Samples are known by their content: what is deleted, added, renamed, relabelled or repeated in the data."""

import json
import shutil

import pytest
import small_ledger as small
import torch

from unlearnkit.data import DataBundle, LabelledImages
from unlearnkit.deletion import Deletion, rollback, verify
from unlearnkit.deletion.requests import Population
from unlearnkit.deletion.samples import Samples
from unlearnkit.utils.checksummed_json import seal
from unlearnkit.utils.errors import ConfigurationError, MismatchError, StoreError


def forget(deletion, name, *samples, groups=()):
    deletion.ask(name, samples=samples, groups=groups)
    return deletion.work()


def delete(tmp_path, name, *numbers):
    for number in numbers:
        (tmp_path / "data" / "train" / name / f"{number}.png").unlink()


def test_another_persons_sample_at_the_position_of_a_forgotten_one(load, tmp_path):
    first = forget(load(), "person-a", 0, 1, 2)
    delete(tmp_path, "ant", 0, 1, 2)
    second = forget(load(), "person-b", 1)  # the image 4.png
    assert second.outcome == "forgotten"
    assert not set(second.samples) & set(first.samples)
    delete(tmp_path, "ant", 4)
    assert forget(load(), "person-c", 0).outcome == "forgotten"  # 3.png
    with pytest.raises(ConfigurationError, match="expected samples between 0 and 13"):
        load().ask("person-d", samples=[14])
    assert len(load().ledger.forgotten()) == 5
    verify(load().ledger)


def test_new_samples_are_refused_by_name(load, tmp_path):
    forget(load(), "person-a", 0)
    delete(tmp_path, "ant", 0)
    shutil.copy("data/test/ant/0.png", "data/train/ant/zz.png")
    for act in (lambda d: forget(d, "person-b", 5), Deletion.refresh, Deletion.start, rollback):
        with pytest.raises(MismatchError, match=r"unknown samples: data/train/ant/zz\.png[.;]") as error:
            act(load())
        assert ("missing" in str(error.value)) == (act is rollback)
    assert [r.outcome for r in load().ledger.receipts()] == ["started", "forgotten"]
    assert load().ledger.queue.waiting() == []


def test_samples_that_are_not_forgotten_must_be_there(load, tmp_path):
    delete(tmp_path, "bee", 1, 3)
    with pytest.raises(MismatchError, match=r"missing though not forgotten, by number when .* started: 7, 9\. Put"):
        forget(load(), "person-a", 0)


@pytest.mark.parametrize("change", ["pixels", "label"])
def test_a_changed_sample_is_refused(load, change):
    if change == "pixels":
        shutil.copy("data/test/bee/0.png", "data/train/bee/2.png")
    else:
        shutil.move("data/train/bee/2.png", "data/train/cow/9.png")
    with pytest.raises(MismatchError, match=r"unknown samples: data/train/.*; missing though not forgotten.*: 8\. Put"):
        forget(load(), "person-a", 0)


def test_renamed_and_reordered_files_are_the_same_samples(load):
    asked = load().hashes([7])
    shutil.move("data/train/bee/1.png", "data/train/bee/z.png")
    receipt = forget(load(), "person-a", 11)
    assert list(receipt.samples) == asked


def test_request_that_waits_means_the_samples_it_was_made_for(load, tmp_path):
    forget(load(), "person-a", 0, 1)
    waiting = load()
    waiting.ask("person-b", samples=[3])
    delete(tmp_path, "ant", 0, 1)
    receipt = load().work()
    assert list(receipt.samples) == waiting.hashes([3])
    assert "person-b" in receipt.requests


def test_all_files_of_a_forgotten_class_may_be_deleted(load, tmp_path):
    assert forget(load(), "person-a", groups=["ant"]).groups == ("ant",)
    delete(tmp_path, "ant", *range(small.TRAIN))
    assert forget(load(), "person-b", groups=["ant"]).outcome == "nothing to forget"
    assert forget(load(), "person-c", 0).outcome == "forgotten"
    assert load().refresh().groups == ("bee", "cow")
    verify(load().ledger)
    (tmp_path / "data/train/ant").rmdir()
    shutil.rmtree(tmp_path / "data/test/ant")
    with pytest.raises(MismatchError, match=r"expected the classes .* needs its empty folder"):
        load().ask("person-d", samples=[0])


def test_rollback_needs_the_data_that_it_puts_back(load, tmp_path):
    forget(load(), "person-a", 0)
    delete(tmp_path, "ant", 0)
    with pytest.raises(MismatchError, match="missing though not forgotten"):
        rollback(load())
    assert load().ledger.receipts()[-1].outcome == "forgotten"


def test_copies_of_a_sample_are_forgotten_together(load, tmp_path):
    shutil.copy("data/train/cow/0.png", "data/train/cow/copy.png")
    again = load("deletion.folder='copies'")
    again.start()
    receipt = forget(again, "person-a", 12)
    assert len(receipt.samples) == 2
    delete(tmp_path, "cow", 0)
    assert forget(load("deletion.folder='copies'"), "person-b", 17).outcome == "nothing to forget"
    verify(again.ledger)


def test_list_of_samples_belongs_to_the_first_receipt(load):
    ledger = load().ledger
    path = ledger.folder / "samples.json"
    raw = json.loads(path.read_text())
    raw["content"]["digests"][0] = "0" * 32
    path.write_text(seal(raw["content"], kind=raw["kind"]))
    for act in (lambda: verify(ledger), lambda: load().ask("person-a", samples=[0])):
        with pytest.raises(StoreError, match=r"samples\.json: expected the samples of receipt 1"):
            act()


def test_digests_depend_on_the_key_the_labels_and_every_bit_of_an_image():
    images = torch.zeros(2, 1, 2, 2)
    data = LabelledImages(images=images, labels={"kind": [0, 1]}, target="kind")

    def digests(key=b"k" * 32, **changes):
        return Samples.of(
            LabelledImages(**{"images": images, "labels": {"kind": [0, 1]}, "target": "kind"} | changes), key=key
        )

    known = digests().digests
    assert len(set(known)) == 2
    assert Samples.of(data.subset([1, 0]), key=b"k" * 32).digests == known[::-1]
    assert not set(digests(key=b"l" * 32).digests) & set(known)
    assert not set(digests(labels={"kind": [2, 3]}).digests) & set(known)
    assert not set(digests(images=-images).digests) & set(known)  # minus zero
    assert not set(digests(images=images.double()).digests) & set(known)
    assert digests(transform=torch.abs).digests == known


def test_ledger_of_another_format_is_refused(load):
    ledger = load().ledger
    path = ledger.folder / "ledger.json"
    content = json.loads(path.read_text())["content"]
    path.write_text(seal(content, kind="unlearnkit-ledger-2"))
    for act in (lambda: verify(ledger), load().work, load().start):
        with pytest.raises(StoreError, match=r"'unlearnkit-ledger-2': another file, or one of another version"):
            act()


def test_two_groups_of_one_name_are_refused():
    data = LabelledImages(
        images=torch.zeros(4, 1, 2, 2),
        labels={"person": torch.tensor([0, 1, 1, 2])},
        target="person",
        class_names={"person": ("Kim", "Lee", "Kim")},
    )
    with pytest.raises(ConfigurationError, match="another name for each group of 'person', saw 'Kim' more than once"):
        Population.of(DataBundle(name="three", train=data, test=data), kind="", forgotten=[False] * 4)
