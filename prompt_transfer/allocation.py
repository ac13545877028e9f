"""How a process gets memory from the system: as it does by default, every training step pays for its tensors anew.

The C library gives large freed blocks back at once, and the next step faults every page of its activations in again: on
two cores a tenth to a third of the time of a step. Here freed memory stays with the process, in large pages where the
system has them.
"""

from __future__ import annotations

import ctypes
import os
import sys

# <malloc.h> of glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST = 2**31 - 1
# Whoever sets one of these has chosen.
CHOICES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
# Read by torch at its first allocation.
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def keep_memory() -> bool:
    """Let this process keep what it frees; to be called before torch is imported.

    Returns:
        Whether anything was changed: only with glibc on Linux, and where the environment does not choose otherwise.
    """
    if sys.platform != "linux" or any(os.environ.get(name) for name in CHOICES):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    os.environ.setdefault(HUGE_PAGES, "1")
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
