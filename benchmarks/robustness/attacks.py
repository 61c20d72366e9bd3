"""What malicious sites send: increments, one array for each tensor, made of what all sites have trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

Arrays = list[np.ndarray]
CLASSES: Final = 20


class Known(NamedTuple):
    """What a malicious site knows when it sends."""

    own: Arrays
    """The increments that it has trained."""
    honest: Sequence[Arrays]
    """Those of all honest sites."""
    random: np.random.Generator


@dataclass(frozen=True)
class Attack:
    """One way to cheat: with the labels, or with what is sent."""

    flips_labels: bool = False
    change: Callable[[Known], Arrays] | None = None


def scaled(factor: float) -> Attack:
    """Its own increment times this factor; below 0, a flipped sign."""
    return Attack(change=lambda known: [factor * one for one in known.own])


def _noise(known: Known) -> Arrays:
    """Noise of ten times the length of its own increment."""
    noise = [known.random.standard_normal(one.shape) for one in known.own]
    return [10 * np.linalg.norm(one) / np.linalg.norm(drawn) * drawn for one, drawn in zip(known.own, noise, strict=True)]


def _little(known: Known) -> Arrays:
    """Baruch et al. (NeurIPS 2019), "A little is enough": every coordinate 1.5 standard deviations off the mean of the honest ones."""
    return [np.mean(one, axis=0) - 1.5 * np.std(one, axis=0) for one in zip(*known.honest, strict=True)]


def _inner_product(known: Known) -> Arrays:
    """Xie et al. (UAI 2020), inner-product manipulation: twice the mean of the honest increments, backwards."""
    return [-2 * np.mean(one, axis=0) for one in zip(*known.honest, strict=True)]


ATTACKS: Final[dict[str, Attack]] = {
    "scaling": scaled(100.0),
    "sign flip": scaled(-4.0),
    "noise": Attack(change=_noise),
    "label flip": Attack(flips_labels=True),
    "a little is enough": Attack(change=_little),
    "inner product": Attack(change=_inner_product),
}
