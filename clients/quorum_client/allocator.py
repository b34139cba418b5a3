"""What the C library's allocator does with memory that a pass gives back: it keeps it for the next pass.

By default glibc returns activations of a few megabytes to the system when they are freed, and takes them again, page by
page, for the next layer: of a forward pass over 2,048 tokens that was a fifteenth (ARCHITECTURE.md). Other C libraries
are left alone.
"""

from __future__ import annotations

import ctypes
import os

_LARGEST_KEPT = 32 * 2**20  # of one block; glibc takes no more
_MOST_KEPT = 512 * 2**20  # at the top of the heap
# By number in malloc.h, and by name in the environment of processes that this one starts.
_OPTIONS = {
    (-3, "MALLOC_MMAP_THRESHOLD_"): _LARGEST_KEPT,
    (-1, "MALLOC_TRIM_THRESHOLD_"): _MOST_KEPT,
}


def keep_freed_memory() -> None:
    """Set it for this process and its children, unless the environment already says something else."""
    for (number, name), size in _OPTIONS.items():
        if name in os.environ:
            continue
        os.environ[name] = str(size)
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(number, size)
