"""What an S3 store means by 403 to a presigned URL. Pure: the answer is an argument, and so is the time, as the store tells it.

To a key that may not list the bucket (or only a prefix of it, which no single object counts as), S3 does not say that an
object is missing: it answers 403 with the code AccessDenied. An expired URL gets the same status and code, and no two
stores the same sentence beside them; a wrong signature or an expired session has a code of its own.
"""

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import parse_qs, urlsplit

_CODE: Final = re.compile(rb"<Code>\s*(\w{1,64})\s*</Code>")
_DENIED: Final = "AccessDenied"
_SKEW: Final = timedelta(minutes=15)
"""How far ahead of its own clock S3 lets a signature be dated."""


def code_in(body: bytes) -> str:
    """The store's word for what is wrong, from the body of its answer; "" if it has none."""
    found = _CODE.search(body)
    return found[1].decode() if found else ""


def may_be_missing(url: str, code: str, date: str) -> bool:
    """Whether a 403 with this code means that there is no such object, or that it may not be known whether there is.

    Args:
        url: the presigned URL (signature version 4).
        code: of the answer.
        date: the answer's Date header: the time by which the store judged the URL.

    Returns:
        False whenever the URL itself may be what was refused: expired, dated ahead, or nothing is known of either.
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
