"""Patterns of parameters: what they select, what they refuse, and that flags come back."""

import pytest
import torch
from torch import nn

from unlearnkit import ConfigurationError
from unlearnkit.models.selection import only_selected, patterns


class Tied(nn.Module):
    """A head that is the embedding, two blocks, and a norm that is frozen."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(2))
        self.norm = nn.LayerNorm(2).requires_grad_(requires_grad=False)
        self.head.weight = self.embed.weight


BLOCKS = [f"blocks.{i}.{j}.{what}" for i in (0, 1) for j in (0, 1) for what in ("weight", "bias")]


def kept(model, **chosen):
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with only_selected(model, **{"only": (), "exclude": (), **chosen}) as left_out:
        found = [name for name, p in model.named_parameters() if p.requires_grad]
        assert set(left_out) == {name for name, flag in flags.items() if flag} - set(found)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    return found


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({}, ["embed.weight", *BLOCKS]),
        ({"only": ["blocks.1.*"]}, BLOCKS[4:]),
        ({"only": ["embed.weight", "*.bias"]}, ["embed.weight", *BLOCKS[1::2]]),
        ({"only": ["head.*"]}, ["embed.weight"]),  # a tied weight by either of its names
        ({"exclude": ["head.*"]}, BLOCKS),
        ({"exclude": ["type:Embedding", "type:*Norm"]}, [*BLOCKS[:2], *BLOCKS[4:6]]),
        ({"only": ["blocks.*"], "exclude": ["*.bias"]}, BLOCKS[::2]),
        ({"only": ["norm.*", "blocks.0.0.*"]}, BLOCKS[:2]),  # what is frozen stays so
    ],
)
def test_patterns_select_by_name_and_by_class(chosen, found):
    assert kept(Tied(), **chosen) == found


def test_weights_tied_by_memory_alone_are_frozen_together():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False), "c": nn.Linear(2, 2)})
    model["b"].weight.data = model["a"].weight.data
    with only_selected(model, only=(), exclude=("b.*",)) as left_out:
        assert left_out == ("a.weight",)
        assert not model["a"].weight.requires_grad
        assert not model["b"].weight.requires_grad
    assert model["b"].weight.requires_grad


def test_a_compiled_model_has_the_names_of_its_own():
    model = torch.compile(Tied())
    with only_selected(model, only=("blocks.0.*",), exclude=()) as left_out:
        assert left_out == ("embed.weight", *BLOCKS[4:])


def test_flags_come_back_after_an_exception():
    model = Tied()
    with pytest.raises(ZeroDivisionError), only_selected(model, only=("blocks.*",), exclude=()):
        raise ZeroDivisionError
    assert model.embed.weight.requires_grad


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"only": ["*.emned.*"]}, r"only: no parameter matches '\*\.emned\.\*': the closest are .*'embed\.weight'"),
        ({"exclude": ["type:LayerNorn"]}, "exclude: no parameter matches .*: the closest are 'type:LayerNorm'"),
        ({"only": ["block", "norn"]}, "2 problems: .*block.*norn"),
        ({"only": ["norm.*"]}, "expected to leave a trainable parameter of Tied, saw none left"),
        ({"exclude": ["*"]}, "expected to leave a trainable parameter of Tied, saw none left"),
    ],
)
def test_patterns_that_select_nothing_are_refused(chosen, message):
    with pytest.raises(ConfigurationError, match=message):
        kept(Tied(), **chosen)


def test_one_string_is_one_pattern():
    assert patterns("*.mlp.*") == ("*.mlp.*",)
    for wrong in ([3], "", [""]):
        with pytest.raises(ConfigurationError, match=r"expected patterns of parameter names, such as '\*\.mlp\.\*'"):
            patterns(wrong)
