"""The ranks of a plan in words: a line for the kinds of weight that have the same ranks in the same layers. Pure.

`q_proj, v_proj: rank 32 in layers 20–29; rank 8 in layers 10–19 (importance 1.4 × the mean of all weights)`. The number of lines and
their length do not grow with the model.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final

from fedpipe_operator.formatting import excerpt, ranges_text
from fedpipe_operator.weight_grid import weight_grid

MAX_LINES: Final = 8
LONGEST_LINE: Final = 256
_MAX_KINDS: Final = 6
"""Kinds that a line names."""
_MAX_RANGES: Final = 4
"""Ranges of layers that a line gives for a rank."""
_UNEQUAL: Final = 0.05
"""Mean scores within 5 % of the mean of all weights are not worth a word."""


def rank_lines(ranks: Mapping[str, int], importance: Mapping[str, float]) -> tuple[str, ...]:
    """Which weights have which rank: at most `MAX_LINES` lines of at most `LONGEST_LINE` characters.

    Args:
        ranks: by weight; 0: no adapter.
        importance: score by weight, of mean 1; empty if none was measured.
    """
    grid = weight_grid(ranks)
    alike: dict[str, list[str]] = defaultdict(list)
    for kind in grid.kinds:
        alike[_layers_by_rank(grid.weights[kind], ranks)].append(kind)
    lines = [
        f"{_names(kinds)}: {what}{_importance(importance, [name for kind in kinds for name in grid.weights[kind].values()])}"
        for what, kinds in alike.items()
    ]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES - 1 :] = [f"and {len(lines) - MAX_LINES + 1} more lines like these, in the plan that the store has"]
    return tuple(excerpt(line, LONGEST_LINE) for line in lines)


def _layers_by_rank(weights: Mapping[int | None, str], ranks: Mapping[str, int]) -> str:
    """The layers of each rank of one kind of weight, the largest rank first."""
    layers: dict[int, list[int | None]] = defaultdict(list)
    for layer, name in weights.items():
        layers[ranks[name]].append(layer)
    used = sorted((rank for rank in layers if rank), reverse=True)
    return "; ".join(f"rank {rank}{_layers_text(layers[rank])}" for rank in used) or "no adapter"


def _layers_text(layers: Sequence[int | None]) -> str:
    """` in layers 20–29`; a weight outside all layers has no number."""
    numbered = [layer for layer in layers if layer is not None]
    if not numbered:
        return ""
    ranges = ranges_text(numbered).split(", ")
    more = f" … ({len(numbered)} layers)" if len(ranges) > _MAX_RANGES else ""
    return f" in layer{'s' if len(numbered) > 1 else ''} {', '.join(ranges[:_MAX_RANGES])}{more}"


def _names(kinds: Sequence[str]) -> str:
    more = f" and {len(kinds) - _MAX_KINDS} more" if len(kinds) > _MAX_KINDS else ""
    return ", ".join(kinds[:_MAX_KINDS]) + more


def _importance(scores: Mapping[str, float], names: Sequence[str]) -> str:
    """How important these weights are on average; empty if it is not known, or if they are like all others."""
    known = [scores[name] for name in names if name in scores]
    if not known or abs(fmean(known) - 1) < _UNEQUAL:
        return ""
    return f" (importance {fmean(known):.2g} × the mean of all weights)"
