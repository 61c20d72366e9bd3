"""The weights as a grid: rows by kind (`q_proj`), columns by layer, with the shortest unambiguous names of the kinds. Pure.

A weight's name is its module path in the base model, such as `model.layers.11.self_attn.q_proj`; the first number in it
is its layer.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_LAYER = "*"


@dataclass(frozen=True)
class WeightGrid:
    """Kinds (short names) by layers; `weights[kind][layer]` is the full name, absent where a layer has no such weight."""

    kinds: tuple[str, ...]
    layers: tuple[int | None, ...]
    """Ascending; None, at the end, is the column of weights outside all layers."""
    weights: dict[str, dict[int | None, str]]


def weight_grid(names: Iterable[str]) -> WeightGrid:
    """The grid of these weights. Kinds are in the order of their first weight."""
    split = {name: _split_layer(name) for name in names}
    titles = _short_titles({pattern for pattern, _ in split.values()})
    weights: dict[str, dict[int | None, str]] = defaultdict(dict)
    for name, (pattern, layer) in split.items():
        weights[titles[pattern]][layer] = name
    numbered = sorted({layer for _, layer in split.values() if layer is not None})
    outside: list[int | None] = [None] if any(layer is None for _, layer in split.values()) else []
    return WeightGrid(tuple(weights), (*numbered, *outside), dict(weights))


def _split_layer(name: str) -> tuple[str, int | None]:
    """The name with the layer's number replaced by a placeholder, and that number; None if there is none."""
    parts = name.split(".")
    at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        return name, None
    return ".".join([*parts[:at], _LAYER, *parts[at + 1 :]]), int(parts[at])


def _short_titles(patterns: set[str]) -> dict[str, str]:
    """By pattern: its last component, preceded by the components that distinguish it from patterns with the same last one."""
    by_last: dict[str, list[str]] = defaultdict(list)
    for pattern in patterns:
        by_last[pattern.rsplit(".", 1)[-1]].append(pattern)
    return {pattern: title for last, group in by_last.items() for pattern, title in _distinct_titles(last, group).items()}


def _distinct_titles(last: str, group: list[str]) -> dict[str, str]:
    """Without numbers if they are distinct (a T5 numbers its sublayers), else with them, else the whole patterns."""
    for with_numbers in (False, True):
        words = {pattern: [part for part in pattern.split(".")[:-1] if with_numbers or not part.isdecimal()] for pattern in group}
        common = set.intersection(*(set(parts) for parts in words.values()))
        titles = {pattern: ".".join([*(part for part in parts if part not in common), last]) for pattern, parts in words.items()}
        if len(set(titles.values())) == len(group):
            return titles
    return {pattern: pattern for pattern in group}
