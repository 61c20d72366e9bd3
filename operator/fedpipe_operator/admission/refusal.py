"""Why something that a site sent is refused."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class RefusalReason(StrEnum):
    """Why a result or an adapter is refused."""

    TOO_LARGE = "TooLarge"
    """The object is larger than its plan allows. It was not read."""
    UNREADABLE = "Unreadable"
    """The result is not JSON, or not of this kind of result."""
    IMPLAUSIBLE = "Implausible"
    """The result has a figure that its task, plan or metric rules out, or a name with unprintable characters."""
    OVERWRITTEN = "Overwritten"
    """The result is another one than when it was first seen, or the adapter was replaced while it was copied."""
    NO_ADAPTER = "NoAdapter"
    """The result reports no completed training with an adapter."""
    WRONG_RUN = "WrongRun"
    """The result belongs to another run."""
    WRONG_ROUND = "WrongRound"
    """The result belongs to another round."""
    WRONG_SITE = "WrongSite"
    """The result belongs to another site, or to a site that has no plan in this round."""
    WRONG_ATTEMPT = "WrongAttempt"
    """The result belongs to another attempt."""
    WRONG_BASE = "WrongBase"
    """It was trained or evaluated on another base model."""
    TOO_FEW_SITES = "TooFewSites"
    """The site's policy asks for more updates in an aggregate than were accepted."""
    WRONG_STEPS = "WrongSteps"
    """It reports no steps or samples, or more than the plan has."""
    WRONG_RANK = "WrongRank"
    """The ranks are not the planned ones."""
    WRONG_SCALE = "WrongScale"
    """The scales of B·A are not the planned ones."""
    HASH_MISMATCH = "HashMismatch"
    """The adapter's size or SHA-256 is not the one that the result states."""
    MALFORMED = "Malformed"
    """The adapter is not a complete safetensors file."""
    UNKNOWN_KEY = "UnknownKey"
    """The adapter has a tensor that is not in the plan."""
    MISSING_KEY = "MissingKey"
    """The adapter lacks a tensor that is in the plan."""
    WRONG_SHAPE = "WrongShape"
    """A tensor does not have the planned shape."""
    WRONG_DTYPE = "WrongDtype"
    """A tensor is not float32."""
    NOT_FINITE = "NotFinite"
    """A tensor contains NaN or infinity."""
    NORM_TOO_LARGE = "NormTooLarge"
    """The norm of the whole update's increment exceeds `spec.aggregation.maxNorm`."""
    INCREMENT_TOO_LONG = "IncrementTooLong"
    """An increment is longer than `spec.aggregation.clipMultiple` times what is usual in the round, and `clipping` is `Refuse`."""


@dataclass(frozen=True)
class Refused:
    """A refusal: the reason, and a sentence that names the object, what was found and what was expected."""

    reason: RefusalReason
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class RefusedError(Exception):
    """Something that a site sent is refused.

    A message may name what the site chose, such as the key of a tensor, and goes to records, status, events and logs: it is one line of
    bounded length that shows nothing but itself, and that UTF-8 can encode.
    """

    def __init__(self, reason: RefusalReason, message: str) -> None:
        super().__init__(message)
        self.refused = Refused(reason, _printable(message, _MOST_OF_A_MESSAGE))


def require_equal(reason: RefusalReason, *, found: object, expected: object, what: str) -> None:
    """Refuse unless what was found is what was expected.

    Raises:
        RefusedError: it is not.
    """
    if found != expected:
        raise RefusedError(reason, f"{what}: found {_short(found)}, expected {_short(expected)}")


def require_range(found: float, least: float, most: float, *, what: str, reason: RefusalReason = RefusalReason.IMPLAUSIBLE) -> None:
    """Refuse a number that is not from `least` to `most`.

    Raises:
        RefusedError: it is outside, or NaN.
    """
    if not least <= found <= most:
        raise RefusedError(reason, f"{what}: found {_short(found)}, expected {least:g} to {most:g}")


_SHOWN: Final = 80
_MOST_OF_A_MESSAGE: Final = 1000


def _short(value: object) -> str:
    """A site chose it, and a message shows it."""
    return _printable(str(value), _SHOWN)


def _printable(text: str, most: int) -> str:
    """The beginning, without characters that do more than show."""
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[:most]}…"
