"""Files and the ETags of the objects that they are copies of, where a bucket makes these of MD5 hashes."""

import hashlib
from pathlib import Path
from typing import Final

_MIB: Final = 1 << 20
_PARTS: Final = (5, 8, 10, 15, 16, 32, 50, 64, 100, 128, 256, 512)
"""MiB of the parts in which common programs upload a large file: an ETag tells their number, but not their size."""


def confirms(etag: str, path: Path) -> bool:
    """Whether the ETag is made of the MD5 of this file, or of those of parts of a usual size.

    It may be neither though the file is right: where the bucket encrypts with a key of its user, or the parts have another size.

    Args:
        etag: as in the contract (`ETAG_PATTERN`).
        path: the file.

    Raises:
        OSError: the file cannot be read.
    """
    digest, _, parts = etag.partition("-")
    size = path.stat().st_size
    if not parts:
        return _md5s(path, max(size, 1)) == [bytes.fromhex(digest)]
    usual = {min(mib * _MIB, max(size, 1)) for mib in _PARTS if -(-size // (mib * _MIB)) == int(parts)}
    return any(hashlib.md5(b"".join(_md5s(path, part)), usedforsecurity=False).hexdigest() == digest for part in sorted(usual))


def _md5s(path: Path, part: int) -> list[bytes]:
    """The MD5 of each part of a file, of so many bytes; that of nothing if the file is empty."""
    found, left = [hashlib.md5(usedforsecurity=False)], part
    with path.open("rb") as file:
        while chunk := file.read(min(_MIB, left or part)):
            if not left:
                found.append(hashlib.md5(usedforsecurity=False))
                left = part
            found[-1].update(chunk)
            left -= len(chunk)
    return [one.digest() for one in found]
