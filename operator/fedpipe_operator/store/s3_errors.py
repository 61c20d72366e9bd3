"""Translates the errors of boto3 and S3 endpoints to `TransientError` and `UserError`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ParamValidationError,
)
from botocore.parsers import ResponseParserError

from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.store.connections import AddressRefusedError, BoundError, NoStoreError, TooSlowError

NOT_FOUND = frozenset({"NoSuchKey"})
"""The code for an object that does not exist. A 404 without this code may come from any server at a wrong address."""
BAD_RANGE = frozenset({"InvalidRange", "416", "InvalidArgument"})
"""Codes for a range outside the object (nanio has no specific code for it)."""
CONDITION_FAILED = frozenset({"PreconditionFailed", "412"})
"""Codes for a conditional write whose object existed."""
CONDITION_UNSUPPORTED = frozenset({"NotImplemented", "501"})
"""Codes of a store that does not support conditional writes."""


class _Rule(NamedTuple):
    """The error to raise for any of these codes or HTTP statuses, and the advice in its message."""

    kind: type[TransientError | UserError]
    reason: str
    codes: frozenset[str]
    statuses: frozenset[int]
    advice: str


_FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict"}

_IDENTITY_LATER = {"IDPCommunicationError"}
"""The token service could not ask the issuer of the token for its keys."""
_LATER = frozenset({408, 429})
_CLIENT_ERRORS = range(400, 500)

_WRONG_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"}

_RULES = (  # the first that matches; a full MinIO responds with status 500
    _Rule(UserError, "StoreFull", frozenset(_FULL), frozenset({507}), "free space or raise the quota"),
    _Rule(UserError, "BucketMissing", frozenset({"NoSuchBucket"}), frozenset(), "create the bucket or correct its name"),
    _Rule(UserError, "WrongRegion", frozenset(_WRONG_REGION), frozenset({301}), "set store.region to the bucket's"),
    _Rule(UserError, "ObjectMissing", NOT_FOUND, frozenset(), "the object is not in the store"),
    _Rule(TransientError, "StoreUnavailable", frozenset(_BUSY | _IDENTITY_LATER), _LATER | {*range(500, 600)}, "the store may recover"),
    _Rule(
        UserError,
        "StoreDenied",
        frozenset({"ExpiredToken", "InvalidToken"}),
        frozenset({401, 403}),
        "check the credentials, their permissions, and the clock",
    ),
    _Rule(UserError, "StoreRefused", frozenset(), frozenset(range(1000)), "check the endpoint: is it an S3 store?"),
)
_MESSAGE_MAX = 300
"""Of what the server writes: a run's author chose the server, and its words go into a status and an event."""
_NO_STORE = "the answer is not that of an S3 store; check the endpoint"
_UNREACHABLE = (EndpointConnectionError, ConnectTimeoutError)


def code_of(error: ClientError) -> str:
    """The error code of the store, or the HTTP status if it sent none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def refusal_of_identity(error: ClientError) -> str | None:
    """Why a token service refuses a session, in its words; None if the same request may succeed later."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status not in _CLIENT_ERRORS or status in _LATER or code_of(error) in _BUSY | _IDENTITY_LATER:
        return None
    return f"{shown_words(error.response.get('Error', {}).get('Message') or 'no message')} ({shown_words(code_of(error))}, HTTP {status})"


@contextmanager
def translate_s3_errors(location: str) -> Iterator[None]:
    """Translate errors of boto3 to `TransientError` or `UserError`; the message begins with `location`."""
    try:
        yield
    except ClientError as error:
        raise _response_error(error, location) from error
    except BoundError as error:
        raise _bound_error(error, location) from error
    except (BotoCoreError, HTTPClientError, ResponseParserError, ValueError) as error:
        raise _request_error(error, location) from error


def _response_error(error: ClientError, location: str) -> FedPipeError:
    """The error for an error response of the store."""
    code, status = code_of(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    rule = next(rule for rule in _RULES if code in rule.codes or status in rule.statuses)
    message = shown_words(error.response.get("Error", {}).get("Message") or "no message")
    return rule.kind(rule.reason, f"{location}: {message} ({shown_words(code)}, HTTP {status}); {rule.advice}")


def _request_error(error: Exception, location: str) -> FedPipeError:
    """The error when there was no response, or no request could be made."""
    text = shown_words(str(error))
    if isinstance(error, _UNREACHABLE):
        return TransientError("StoreUnreachable", f"{location}: {text}; check the endpoint's address and that the store is running")
    if isinstance(error, HTTPClientError):
        return TransientError("StoreUnavailable", f"{location}: {text}")
    if isinstance(error, ResponseParserError):
        return UserError("StoreRefused", f"{location}: {_NO_STORE}")
    if isinstance(error, ParamValidationError | ValueError):
        return UserError("StoreRefused", f"{location}: {text}; correct the name of the bucket or the endpoint")
    return TransientError("StoreUnavailable", f"{location}: {text}")


def _bound_error(error: BoundError, location: str) -> FedPipeError:
    """The error for a call that met one of its bounds."""
    if isinstance(error, AddressRefusedError):
        return UserError("AddressRefused", f"{location}: {error}; name the store by an address of its own")
    if isinstance(error, TooSlowError):
        return TransientError("StoreTooSlow", f"{location}: {error}; check the store, and the network between it and the operator")
    if isinstance(error, NoStoreError):
        return UserError("StoreRefused", f"{location}: {_NO_STORE}")
    return UserError("AnswerTooLarge", f"{location}: {error}; check the endpoint, and what else writes into the run's folder")


def shown_words(text: str) -> str:
    """A server's words as a message may have them: printable and short."""
    return "".join(one if one.isprintable() else "�" for one in text[:_MESSAGE_MAX])
