"""What can go wrong at an S3 endpoint, translated at the border into the operator's two kinds of failure."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from fedpipe_operator.errors import FedPipeError, TransientError, UserError

ABSENT = frozenset({"NoSuchKey"})
"""The code of an object that is not there. A 404 that says no more may come from any server at a wrong address."""
BEYOND_THE_END = frozenset({"InvalidRange", "416", "InvalidArgument"})
"""Codes of a range that the object does not have (nanio has no word of its own for it)."""
TAKEN = frozenset({"PreconditionFailed", "412"})
"""Codes of a conditional write that lost."""
CONDITION_UNKNOWN = frozenset({"NotImplemented", "501"})
"""Codes of a store that refuses a conditional write because it knows none."""


class _Rule(NamedTuple):
    """Answers that mean the same, and what to do about them."""

    kind: type[TransientError | UserError]
    reason: str
    codes: frozenset[str]
    statuses: frozenset[int]
    advice: str


_FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict"}

_RULES = (  # the first that fits; MinIO says with status 500 that it is full
    _Rule(UserError, "StoreFull", frozenset(_FULL), frozenset({507}), "free space or raise the quota, then go on"),
    _Rule(UserError, "BucketMissing", frozenset({"NoSuchBucket"}), frozenset(), "create the bucket or correct its name"),
    _Rule(UserError, "ObjectMissing", ABSENT, frozenset(), "it is not, or no longer, in the store"),
    _Rule(TransientError, "StoreUnavailable", frozenset(_BUSY), frozenset({408, 429, *range(500, 600)}), "the store may recover"),
    _Rule(
        UserError,
        "StoreDenied",
        frozenset({"ExpiredToken", "InvalidToken"}),
        frozenset({401, 403}),
        "check the credentials, what they may do, and the clock",
    ),
    _Rule(UserError, "StoreRefused", frozenset(), frozenset(range(600)), "check the endpoint: is it an S3 store?"),
)
_OWN_FAULT = (NoCredentialsError, PartialCredentialsError)
_UNREACHABLE = (EndpointConnectionError, ConnectTimeoutError)


def code_of(error: ClientError) -> str:
    """The store's own word for what happened, or the HTTP status where it gave none."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def translated_faults(place: str) -> Iterator[None]:
    """Raise what boto3 raises as `TransientError` or `UserError`, saying where (`place`)."""
    try:
        yield
    except ClientError as error:
        raise _of_answer(error, place) from error
    except (BotoCoreError, HTTPClientError, ValueError) as error:
        raise _of_no_answer(error, place) from error


def _of_answer(error: ClientError, place: str) -> FedPipeError:
    """The store answered, with an error."""
    code, status = code_of(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    rule = next(rule for rule in _RULES if code in rule.codes or status in rule.statuses)
    said = error.response.get("Error", {}).get("Message") or "no message"
    return rule.kind(rule.reason, f"{place}: {said} ({code}, HTTP {status}); {rule.advice}")


def _of_no_answer(error: Exception, place: str) -> FedPipeError:
    """No answer came, or no request could be made."""
    if isinstance(error, _OWN_FAULT):
        return UserError("StoreDenied", f"{place}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, _UNREACHABLE):
        return TransientError("StoreUnreachable", f"{place}: {error}; check the endpoint's address and that it runs")
    if isinstance(error, HTTPClientError):
        return TransientError("StoreUnavailable", f"{place}: {error}")
    if isinstance(error, ParamValidationError | ValueError):
        return UserError("StoreRefused", f"{place}: {error}; correct the bucket's name or the endpoint")
    return TransientError("StoreUnavailable", f"{place}: {error}")
