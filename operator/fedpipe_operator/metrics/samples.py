"""A sample: one value of one series, by its name in the catalogue without the prefix. Pure."""

from typing import NamedTuple


class Sample(NamedTuple):
    """A value, with the values of the labels in the catalogue's order."""

    name: str
    labels: tuple[str, ...]
    value: float
