"""One colour per site, the same in every figure and table: Okabe and Ito's colours, which colour-blind readers can distinguish."""

from typing import Final

FEDERATED: Final = "#0072B2"
MUTED: Final = "#8A8F98"
"""For reference values."""

_SITES: Final = ("#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_DASHES: Final = {"solid": "none", "dot": "2 3", "dash": "7 4", "dashdot": "7 3 2 3"}
"""By plotly's name of a line style: the SVG dash array."""

_RANKS: Final = ("#D9E6F2", "#A9C9E4", "#83B4DA", "#3D85BC", "#0F5F9E", "#083F6E", "#04284A")
"""From the smallest rank above 0 to the largest; the order from light to dark is also visible in grey print."""
_NO_ADAPTER: Final = "#EDEDED"

QUANTITY: Final = ("#FFF7E6", "#FBD38D", "#E69F00", "#A65E00", "#5C2E00")
"""From 0 to the largest value of a weight, such as its importance: another hue than the ranks, which are drawn below."""
PHASES: Final = {"load": "#8A8F98", "evaluate": "#56B4E9", "train": "#009E73", "transfer": "#E69F00"}
"""By phase of a task, in the order of the legend."""
OTHER_PHASE: Final = "#CC79A7"
IDLE: Final = "#EDEDED"
"""Of the time in which a site waits for the slowest one."""


def site_colour(position: int) -> str:
    """The colour of the site at this position; sites that share a colour differ in their line style."""
    return _SITES[position % len(_SITES)]


def site_dash(position: int) -> str:
    """The line style of the site at this position."""
    return list(_DASHES)[position // len(_SITES) % len(_DASHES)]


def svg_dashes(position: int) -> str:
    """The line style of the site as an SVG dash array, for the page's legend."""
    return _DASHES[site_dash(position)]


def rank_colours(ranks: set[int]) -> dict[int, str]:
    """A colour for each rank in use: grey for 0, else blue, darker for higher ranks, evenly spread over the ranks in use."""
    used = sorted(ranks - {0})
    spread = max(len(used) - 1, 1)
    colours = {rank: _RANKS[round(index * (len(_RANKS) - 1) / spread)] for index, rank in enumerate(used)}
    if len(used) == 1:
        colours = {used[0]: _RANKS[len(_RANKS) // 2]}
    return ({0: _NO_ADAPTER} if 0 in ranks else {}) | colours
