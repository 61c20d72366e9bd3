"""What no log may have, the operator's and the trainer's alike."""

import re
from typing import Final

_QUERY: Final = re.compile(r"(https?://[^\s\"'<>\\?#]*)\?[^\s\"'<>\\]*")
_USER: Final = re.compile(r"(https?://)[^\s\"'<>\\/@]+@")
_NAMED: Final = re.compile(
    r"(?i)(\b(?:x-amz-(?:signature|credential|security-token)|aws_(?:secret_access_key|session_token)|authorization)"
    r"\\?[\"']?\s*[:=]\s*\\?[\"']?(?:bearer\s+|aws4-hmac-sha256\s+)?)[^\s\"'&,}\\]+"
)
_HIDDEN: Final = "[hidden]"


def redacted(text: str) -> str:
    """The text without the queries of URLs, which may hold signatures, their users, and values that are named as secrets."""
    if "://" in text:
        text = _USER.sub(r"\1", _QUERY.sub(rf"\1?{_HIDDEN}", text))
    return _NAMED.sub(rf"\1{_HIDDEN}", text)
