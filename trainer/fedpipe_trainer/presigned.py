"""Interprets a 403 response of an S3 store to a presigned URL. Pure: the response is an argument, and so is the store's time.

If the credentials may not list the bucket (or may list only a prefix, which does not cover a single object), S3 does not
report that an object is missing: it responds with 403 and the code AccessDenied. For an expired URL the status and the
code are the same, and the error message differs between stores; a wrong signature or an expired session has its own code.
"""

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import parse_qs, urlsplit

_CODE: Final = re.compile(rb"<Code>\s*(\w{1,64})\s*</Code>")
_DENIED: Final = "AccessDenied"
_SKEW: Final = timedelta(minutes=15)
"""How far in the future of its own clock S3 accepts the date of a signature."""


def error_code(body: bytes) -> str:
    """The S3 error code in the body of a response; "" if there is none."""
    match = _CODE.search(body)
    return match[1].decode() if match else ""


def may_be_missing(url: str, code: str, date: str) -> bool:
    """Whether a 403 with this code means that the object is missing, or that the credentials may not see whether it is missing.

    Args:
        url: the presigned URL (signature version 4).
        code: the error code of the response.
        date: the Date header of the response, which is the store's time when it checked the URL.

    Returns:
        False if the URL itself may be the cause: it is expired or dated in the future, or the times are unknown.
    """
    if code != _DENIED:
        return False
    query = parse_qs(urlsplit(url).query)
    try:
        signed = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        expires = signed + timedelta(seconds=int(query["X-Amz-Expires"][0]))
        return signed - _SKEW < parsedate_to_datetime(date) < expires
    except (KeyError, ValueError, TypeError):
        return False
