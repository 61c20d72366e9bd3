"""The C heap as glibc tells of it: a heap for each thread that allocates, unless all are to share one."""

import ctypes
import subprocess
import sys

import pytest

THREADS = 6
HEAPS = f"""
import ctypes, threading
from fedpipe_operator.aggregation import malloc

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
{{settle}}
all_at_once = threading.Barrier({THREADS})

def allocate():
    libc.malloc(4096)
    all_at_once.wait()

threads = [threading.Thread(target=allocate) for _ in range({THREADS})]
for one in threads:
    one.start()
for one in threads:
    one.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def heaps(settle: str) -> int:
    """How many heaps a process has whose threads have each allocated a block."""
    done = subprocess.run([sys.executable, "-c", HEAPS.format(settle=settle)], capture_output=True, text=True, check=True)
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="this C library is not glibc, which tells of its heaps")
def test_threads_share_one_heap_when_told_to_and_have_their_own_else() -> None:
    assert heaps("") > 1
    assert heaps("malloc.use_one_arena()") == 1
    assert heaps("malloc.keep_freed_memory()") == 1
