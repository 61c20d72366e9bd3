"""What to do about an error of a site's cache volume. Whatever it is, it costs time only: the caller goes on without the cache."""

import errno
import os
from typing import Final

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
MORE_SPACE: Final = "free space (or inodes) on the site's cache volume, or give the site a larger one"
_NOT_PERMITTED: Final = (errno.EACCES, errno.EPERM)


def advice(error: OSError) -> str:
    """What a person can do about this error, which is told beside."""
    if error.errno in FULL:
        return MORE_SPACE
    if error.errno in _NOT_PERMITTED:
        return f"let user {os.geteuid()} or group {os.getegid()} read and write the site's cache volume"
    if error.errno == errno.EROFS:
        return "give the trainer a writable cache volume"
    return "check the site's cache volume"
