"""The arenas that glibc's `malloc_info` reports: one for each thread that allocates, unless all threads share one."""

import ctypes
import subprocess
import sys

import pytest

THREADS = 6
SCRIPT = f"""
import ctypes, threading
from fedpipe_operator.aggregation import malloc

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
{{tune}}
barrier = threading.Barrier({THREADS})

def allocate():
    libc.malloc(4096)
    barrier.wait()

threads = [threading.Thread(target=allocate) for _ in range({THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def arena_count(tune: str) -> int:
    """The number of arenas of a process in which each thread has allocated a block."""
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(tune=tune)], capture_output=True, text=True, check=True)
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="malloc_info needs glibc")
def test_threads_share_one_arena_if_malloc_is_tuned_and_have_their_own_by_default() -> None:
    assert arena_count("") > 1
    assert arena_count("malloc.limit_malloc_to_one_arena()") == 1
    assert arena_count("malloc.tune_malloc_for_aggregation()") == 1
