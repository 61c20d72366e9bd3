"""What can go wrong at the Kubernetes API, translated at the border into the operator's two kinds of failure. Pure."""

import json
import re
from typing import Final

from fedpipe_operator.errors import FedPipeError, TransientError, UserError

_CONFLICT: Final = 409
_FORBIDDEN: Final = (401, 403)
_WEATHER: Final = frozenset({408, 409, 429, *range(500, 600)})
_QUOTA: Final = "exceeded quota"
_DENIED: Final = re.compile(r"denied (the )?request")
"""By an admission webhook or policy, whoever asks."""
REFUSED: Final = "ApiRefused"
NAMESPACE_TERMINATING: Final = "NamespaceTerminating"
_TERMINATING: Final = "because it is being terminated"


def of_answer(status: int, body: bytes, place: str) -> FedPipeError:
    """The API server refused a call."""
    said = _message(body)
    if status in _FORBIDDEN and _QUOTA in said:
        return TransientError("QuotaExceeded", f"{place}: {said}; it is tried again, raise the ResourceQuota if that takes too long")
    if status in _FORBIDDEN and _TERMINATING in said:
        return TransientError(NAMESPACE_TERMINATING, f"{place}: {said}; nothing more is made there")
    if status in _FORBIDDEN and not _DENIED.search(said):
        return UserError("ApiForbidden", f"{place}: {said}; the operator's role lacks this right: install the chart's own")
    if status in _WEATHER:
        return TransientError("ApiConflict" if status == _CONFLICT else "ApiUnavailable", f"{place}: {said} (HTTP {status})")
    return UserError(REFUSED, f"{place}: {said} (HTTP {status}); correct what it names")


def of_no_answer(error: Exception, place: str) -> TransientError:
    """No answer came."""
    return TransientError("ApiUnavailable", f"{place}: {error}")


def _message(body: bytes) -> str:
    try:
        told = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")[:500] or "no message"
    return str(told.get("message") or told.get("reason") or "no message") if isinstance(told, dict) else str(told)
