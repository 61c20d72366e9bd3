"""Error feedback: what compression lost of a site's update is added to its next one (Seide et al. 2014; Karimireddy et al. 2019).

The residual is kept in the space of the products, since the global factors of the next round are others: E = L·R for each weight. The next
update can say of it what lies in the row space of its factor A, and what lies in the column space of B: first C = E Aᵀ (A Aᵀ)⁻¹ / s is
added to B, then D = (Bᵀ B)⁻¹ Bᵀ (E − s C A) / s to A. The rest, and what compression loses this time, is the next residual, cut to twice
the rank of the update: the errors of both factors. Of a tensor that is trained whole it is a plain difference. numpy, float64 in a weight.

Feedback never costs a training or a round: a residual that is not finite, or makes the update so, is forgotten.

The files lie in the site's cache and never leave it: one for each round, so that another attempt at a round starts from the same.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedpipe_trainer.cache_volume import advice
from fedpipe_trainer.codecs import Float32
from fedpipe_trainer.contract import RunRef
from fedpipe_trainer.kept_files import read_kept, write_kept

Float64 = npt.NDArray[np.float64]
FOLDER: Final = "residuals"
"""Name of the folder of a site's cache that has those of all runs."""
_RIDGE_OF_A: Final = 1e-6
"""Of the mean of A Aᵀ's diagonal, added to it: nearly equal rows do not make C large."""
_RIDGE_OF_B: Final = 1e-2
"""Likewise of Bᵀ B: more, since columns that have learned little are short, and D would be large."""
_RANKS: Final = 2
"""Ranks of the update that a residual has at most."""
_SUFFIX: Final = ".safetensors"
_MATRIX: Final = 2

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LowRank:
    """A matrix as left (d_out × n) times right (n × d_in)."""

    left: Float64
    right: Float64

    def beside(self, left: Float64, right: Float64) -> "LowRank":
        """The sum of this and left · right."""
        return LowRank(np.hstack([self.left, left]), np.vstack([self.right, right]))

    def cut(self, rank: int) -> "LowRank":
        """The largest components, at most so many; none where they cannot be found, as of values that are no numbers."""
        if self.left.shape[1] <= rank:
            return self
        try:
            with np.errstate(invalid="ignore", over="ignore"):
                (q, r), (p, t) = np.linalg.qr(self.left), np.linalg.qr(self.right.T)
                u, s, vt = np.linalg.svd(r @ t.T)
        except np.linalg.LinAlgError:
            return _nothing(len(self.left), self.right.shape[1])
        rank = min(rank, len(s))
        return LowRank(q @ (u[:, :rank] * s[:rank]), vt[:rank] @ p.T)


def _nothing(d_out: int, d_in: int) -> LowRank:
    return LowRank(np.zeros((d_out, 0)), np.zeros((0, d_in)))


Residuals = Mapping[str, Float32]
"""By key of the file: the tensor's difference, or of a weight `<weight>.left` and `<weight>.right`."""


def correct(a: Float32, b: Float32, scale: float, residual: LowRank | None) -> tuple[Float32, Float32, LowRank]:
    """A and B with what they can say of the residual, and the rest of it. One that makes them no numbers is forgotten.

    Args:
        a: rank × d_in.
        b: d_out × rank.
        scale: s, of the product.
        residual: of earlier rounds; None: nothing was lost.
    """
    if residual is not None:
        try:
            with np.errstate(invalid="ignore", over="ignore"):
                corrected = _correct(a, b, scale, residual)
        except np.linalg.LinAlgError:
            corrected = None
        if corrected is not None and np.isfinite(corrected[0]).all() and np.isfinite(corrected[1]).all():
            return corrected
    return a, b, _nothing(len(b), a.shape[1])


def _correct(a: Float32, b: Float32, scale: float, residual: LowRank) -> tuple[Float32, Float32, LowRank]:
    rows, columns = a.astype(np.float64), b.astype(np.float64)
    to_b = _solve(rows @ rows.T, (rows @ residual.right.T) @ residual.left.T, _RIDGE_OF_A).T / scale
    new_b = (columns + to_b).astype(np.float32)
    wide = new_b.astype(np.float64)
    unsaid = residual.beside(-scale * to_b, rows)
    to_a = _solve(wide.T @ wide, (wide.T @ unsaid.left) @ unsaid.right, _RIDGE_OF_B) / scale
    new_a = (rows + to_a).astype(np.float32)
    return new_a, new_b, residual.beside(scale * columns, rows).beside(-scale * wide, new_a.astype(np.float64))


def _solve(gram: Float64, right: Float64, ridge: float) -> Float64:
    """(G + ridge·mean diagonal)⁻¹ · right; zero where G is."""
    added = ridge * np.trace(gram) / len(gram)
    return np.linalg.solve(gram + added * np.eye(len(gram)), right) if added > 0 else np.zeros_like(right)


def left_over(rest: LowRank, scale: float, sent: tuple[Float32, Float32], decoded: tuple[Float32, Float32]) -> LowRank:
    """The next residual of a weight: the rest, and what the decoded factors (A, B) lack of those that were sent."""
    (a, b), (a_decoded, b_decoded) = ([one.astype(np.float64) for one in pair] for pair in (sent, decoded))
    return rest.beside(scale * b, a).beside(-scale * b_decoded, a_decoded).cut(_RANKS * len(a))


class ResidualStore:
    """The residuals of one site in one run, in the site's cache. Whatever goes wrong there, the update is sent without them."""

    def __init__(self, cache: Path, run: RunRef, site: str) -> None:
        """`cache` is the site's folder that is kept from one task to the next."""
        self._name = hashlib.sha256(f"{run.namespace}/{run.name}/{run.uid}/{site}".encode()).hexdigest()[:32]
        self._folder = cache / FOLDER  # one for all runs, so that those of runs that ended are removed

    def read(self, round_: int) -> Residuals:
        """Those of the last round before this one that the site took part in; empty if there is none that can be read.

        What is not float32, or no number, is left out: a volume may be damaged, and a training may have diverged.
        """
        before = self._rounds_before(round_)
        try:
            found = load(read_kept(self._path(before[-1]))) if before else {}
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:  # the last three: of types that numpy has not
            _LOG.warning("what compression lost in earlier rounds cannot be read, and is not sent: %s", error)
            return {}
        return {key: value for key, value in found.items() if value.dtype == np.float32 and np.isfinite(value).all()}

    def write(self, round_: int, residuals: Residuals) -> None:
        """Keep those of this round beside the ones that it started from, which another attempt at it needs; remove what is older."""
        try:
            write_kept(self._path(round_), save({key: np.ascontiguousarray(value) for key, value in residuals.items()}))
            for old in self._rounds_before(round_)[:-1]:
                self._path(old).unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("what compression lost cannot be kept for the next round (%s): %s", error.strerror, advice(error))

    def _path(self, round_: int) -> Path:
        return self._folder / f"{self._name}-{round_}{_SUFFIX}"

    def _rounds_before(self, round_: int) -> list[int]:
        """Ascending."""
        rounds = (path.stem.rpartition("-")[2] for path in self._folder.glob(f"{self._name}-*{_SUFFIX}"))
        return sorted(int(one) for one in rounds if one.isdecimal() and int(one) < round_)


def residual_of(residuals: Mapping[str, Float32], weight: str, shape: tuple[int, int]) -> LowRank | None:
    """The residual of a weight of this shape (d_out, d_in); None if there is none of it."""
    left, right = residuals.get(f"{weight}.left"), residuals.get(f"{weight}.right")
    if left is None or right is None or left.ndim != _MATRIX or right.ndim != _MATRIX:
        return None
    if (len(left), right.shape[1]) != shape or left.shape[1] != len(right):
        return None
    return LowRank(left.astype(np.float64), right.astype(np.float64))


def as_residuals(weight: str, residual: LowRank) -> Residuals:
    """As the file has it."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float32 is not read again
        return {f"{weight}.left": residual.left.astype(np.float32), f"{weight}.right": residual.right.astype(np.float32)}
