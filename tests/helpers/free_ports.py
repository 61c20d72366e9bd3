"""Ports on which a test's server may listen, each given out once.

They lie below those that the kernel gives to connections and to servers without a port, of which one that was free a moment ago may be
taken; and each process that runs tests has a range of its own.
"""

import itertools
import os
import socket
from typing import Final

_FIRST: Final = 12_000
_EACH: Final = 1000
"""Ports of a process that runs tests."""
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
_OFFSETS: Final = itertools.count(os.getpid() % _EACH)
"""Another beginning in each process: what a test started may still listen in the next one."""


def free_port() -> int:
    """One that nothing listens on."""
    for offset in itertools.islice(_OFFSETS, _EACH):
        port = _FIRST + _WORKER * _EACH + offset % _EACH
        if _is_free(port):
            return port
    raise AssertionError(f"no port of this process is free, of {_EACH}")


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("0.0.0.0", port))  # noqa: S104 -- whether it is taken on any address
        except OSError:
            return False
    return True
