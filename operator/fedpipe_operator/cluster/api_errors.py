"""Errors of the Kubernetes API as the operator's two kinds of error. Pure."""

import json
import re
from typing import Final

from fedpipe_operator.errors import FedPipeError, TransientError, UserError

_CONFLICT: Final = 409
_FORBIDDEN: Final = (401, 403)
_TRANSIENT: Final = frozenset({408, 409, 429, *range(500, 600)})
_OF_THE_SERVER: Final = frozenset({401, 408, 429, 502, 503, 504})
"""Statuses of a server that answers no other request either. A webhook that fails for one object is a 500."""
_QUOTA: Final = "exceeded quota"
_DENIED: Final = re.compile(r"denied (the )?request")
"""By an admission webhook or policy, not by a missing right."""
REFUSED: Final = "ApiRefused"
UNAVAILABLE: Final = "ApiUnavailable"
"""There was no answer, or that of a server which does not know either what became of the request."""
NAMESPACE_TERMINATING: Final = "NamespaceTerminating"
_TERMINATING: Final = "because it is being terminated"


def error_of_response(status: int, body: bytes, request: str, advice: str) -> FedPipeError:
    """The error for a response whose status is not a success; `advice` says what to do where a right is missing."""
    error = _error_of(status, _message(body), request, advice)
    error.is_of_one_object = status not in _OF_THE_SERVER and error.reason != NAMESPACE_TERMINATING
    return error


def _error_of(status: int, message: str, request: str, advice: str) -> FedPipeError:
    if status in _FORBIDDEN and _QUOTA in message:
        return TransientError("QuotaExceeded", f"{request}: {message}; it is retried; raise the ResourceQuota if this takes too long")
    if status in _FORBIDDEN and _TERMINATING in message:
        return TransientError(NAMESPACE_TERMINATING, f"{request}: {message}; nothing can be created there any more")
    if status in _FORBIDDEN and not _DENIED.search(message):
        return UserError("ApiForbidden", f"{request}: {message}; {advice}")
    if status in _TRANSIENT:
        return TransientError("ApiConflict" if status == _CONFLICT else UNAVAILABLE, f"{request}: {message} (HTTP {status})")
    return UserError(REFUSED, f"{request}: {message} (HTTP {status}); correct what it names")


def error_without_response(error: Exception, request: str) -> TransientError:
    """The error for a request that got no response."""
    return TransientError(UNAVAILABLE, f"{request}: {error}")


def _message(body: bytes) -> str:
    try:
        status = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")[:500] or "no message"
    return str(status.get("message") or status.get("reason") or "no message") if isinstance(status, dict) else str(status)
