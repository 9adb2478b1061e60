"""Settings from the command line that replace those of a TOML file."""

import copy
import tomllib
from collections.abc import Iterable
from typing import Any

from unlearnkit.utils.errors import ConfigurationError, nearest


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy in which some settings are replaced.

    Example:
        >>> apply_overrides({"method": [{"name": "ssd", "options": {"alpha": 10.0}}]}, ["method.ssd.options.alpha=5"])
        {'method': [{'name': 'ssd', 'options': {'alpha': 5}}]}
        >>> apply_overrides({}, ["device=cpu"])
        {'device': 'cpu'}
    """
    result = copy.deepcopy(raw)
    for override in overrides:
        path, sign, text = override.partition("=")
        keys = path.strip().split(".")
        if not sign or not all(keys):
            raise ConfigurationError(f"expected a setting as KEY=VALUE, as importance.batch_size=32, saw {override!r}")
        place: Any = result
        for key in keys[:-1]:
            place = _step(place, key, override)
        if isinstance(place, list):
            place[_index(place, keys[-1], override)] = _value(text)
        elif isinstance(place, dict):
            place[keys[-1]] = _value(text)
        else:
            raise ConfigurationError(f"{override!r}: {'.'.join(keys[:-1])} has no keys")
    return result


def _step(place: Any, key: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, override)]
    if isinstance(place, dict):
        return place.setdefault(key, {})
    raise ConfigurationError(f"{override!r}: there is nothing below {key!r}")


def _index(items: list[Any], key: str, override: str) -> int:
    if key.isdigit() and int(key) < len(items):
        return int(key)
    labels = [str(i.get("label", i.get("name", ""))) if isinstance(i, dict) else "" for i in items]
    if labels.count(key) != 1:
        raise ConfigurationError(f"{override!r}: no single item is called {key!r}{nearest(key, labels)}")
    return labels.index(key)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
