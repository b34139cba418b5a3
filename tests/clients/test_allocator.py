"""That the allocator keeps what is freed: seen from outside, in the pages that a process has to ask for again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Blocks of 8 MiB, written to and freed, over and over: each time 2,048 new pages, unless the allocator kept them.
FAULTS = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def turn():
    blocks = [libc.malloc(2**23) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 2**23)
    for block in blocks:
        libc.free(block)
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from quorum_client.allocator import keep_freed_memory; keep_freed_memory()"
IN_A_CHILD = f"{KEEP}; import subprocess, sys; subprocess.run([sys.executable, '-c', {FAULTS!r}], check=True)"


def faults(code: str, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets options of glibc")
def test_freed_memory_is_kept_here_and_in_children() -> None:
    pages = 5 * 4 * 2**23 // os.sysconf("SC_PAGESIZE")
    assert faults(FAULTS) > pages / 2  # the default gives them back
    assert faults(KEEP + FAULTS) < pages / 20
    assert faults(IN_A_CHILD) < pages / 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets options of glibc")
def test_what_the_environment_says_holds() -> None:
    assert faults(KEEP + "; import os; print(os.environ['MALLOC_TRIM_THRESHOLD_'])", MALLOC_TRIM_THRESHOLD_="7") == 7
