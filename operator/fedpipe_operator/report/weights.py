"""Weights' names as a grid: rows by kind (`q_proj`), columns by layer, names as short as they can be and still differ. Pure.

A weight is named by its module path in the base model, such as `model.layers.11.self_attn.q_proj`; the first
number in it is its layer.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_LAYER = "*"


@dataclass(frozen=True)
class Grid:
    """Kinds (short names) by layers; `weights[kind][layer]` is the full name, absent where a layer has no such weight."""

    kinds: tuple[str, ...]
    layers: tuple[int | None, ...]
    """In order; None, at the end, stands for weights outside all layers."""
    weights: dict[str, dict[int | None, str]]


def grid(names: Iterable[str]) -> Grid:
    """The grid of these weights. Kinds keep the order in which the names bring them."""
    places = {name: _place(name) for name in names}
    titles = _short({pattern for pattern, _ in places.values()})
    weights: dict[str, dict[int | None, str]] = defaultdict(dict)
    for name, (pattern, layer) in places.items():
        weights[titles[pattern]][layer] = name
    numbered = sorted({layer for _, layer in places.values() if layer is not None})
    outside: list[int | None] = [None] if any(layer is None for _, layer in places.values()) else []
    return Grid(tuple(weights), (*numbered, *outside), dict(weights))


def _place(name: str) -> tuple[str, int | None]:
    """The name with its layer's number taken out, and that number."""
    parts = name.split(".")
    at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        return name, None
    return ".".join([*parts[:at], _LAYER, *parts[at + 1 :]]), int(parts[at])


def _short(patterns: set[str]) -> dict[str, str]:
    """By pattern: its last part, preceded by as much as tells it from the others that end alike."""
    alike: dict[str, list[str]] = defaultdict(list)
    for pattern in patterns:
        alike[pattern.rsplit(".", 1)[-1]].append(pattern)
    return {pattern: title for last, group in alike.items() for pattern, title in _apart(last, group).items()}


def _apart(last: str, group: list[str]) -> dict[str, str]:
    """Without numbers if that is enough (a T5 counts its sublayers), else with them, else the whole patterns."""
    for skipped in (str.isdecimal, _nothing):
        words = {pattern: [part for part in pattern.split(".")[:-1] if not skipped(part)] for pattern in group}
        common = set.intersection(*(set(parts) for parts in words.values()))
        titles = {pattern: ".".join([*(part for part in parts if part not in common), last]) for pattern, parts in words.items()}
        if len(set(titles.values())) == len(group):
            return titles
    return {pattern: pattern for pattern in group}


def _nothing(_part: str) -> bool:
    return False
