"""Coarse classes as groups of fine ones: the sub-class scenario for any data set."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unlearnkit.utils.errors import ConfigurationError, raise_all

Groups = Mapping[str, Sequence[str]]


def coarse_of_fine(groups: Groups, fine_names: Sequence[str]) -> Tensor:
    """Say for every fine class which coarse class it belongs to.

    Example:
        >>> coarse_of_fine({"animal": ["cat", "dog"], "vehicle": ["car"]}, ["car", "cat", "dog"])
        tensor([1, 0, 0])
    """
    as_text = [name for name, members in groups.items() if isinstance(members, str)]
    times = Counter(member for members in groups.values() for member in members)
    known = list(fine_names)
    problems = [f"{name}: expected a list of class names, saw one string" for name in as_text] or [
        *(f"{name}: expected at least one class, saw none" for name, members in groups.items() if not members),
        *(f"{name}: expected in one group, saw it in none" for name in fine_names if not times[name]),
        *(f"{name}: expected in one group, saw it {count} times" for name, count in times.items() if count > 1),
        *(f"{name}: expected one of {known}, saw an unknown class" for name in times if name not in known),
    ]
    raise_all(problems, where="groups", error=ConfigurationError)
    coarse = {member: number for number, members in enumerate(groups.values()) for member in members}
    return torch.tensor([coarse[name] for name in fine_names], dtype=torch.int64)
