"""Coarse classes as groups of fine ones."""

import pytest
import torch

from unlearnkit.data.labelled import coarse_of_fine
from unlearnkit.utils.errors import ConfigurationError

NAMES = ["car", "cat", "dog"]


def test_coarse_class_of_each_fine_class():
    coarse = coarse_of_fine({"animal": ["dog", "cat"], "vehicle": ["car"]}, NAMES)
    assert coarse.tolist() == [1, 0, 0]
    assert coarse.dtype == torch.int64


def test_all_problems_are_listed():
    with pytest.raises(ConfigurationError) as caught:
        coarse_of_fine({"animal": ["cat", "cat", "cow"], "nothing": []}, NAMES)
    message = str(caught.value)
    assert "nothing: expected at least one class, saw none" in message
    assert "car: expected in one group, saw it in none" in message
    assert "dog: expected in one group, saw it in none" in message
    assert "cat: expected in one group, saw it 2 times" in message
    assert "cow: expected one of ['car', 'cat', 'dog'], saw an unknown class" in message


def test_a_string_is_not_a_list_of_names():
    with pytest.raises(ConfigurationError, match="animal: expected a list of class names, saw one string"):
        coarse_of_fine({"animal": "cat"}, NAMES)
