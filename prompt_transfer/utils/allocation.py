"""How a process gets memory from the system: as it does by default, every training step pays for its tensors anew.

The C library gives large freed blocks back at once, and the next step faults every page of its activations in again: on
two cores a tenth to a third of the time of a step. Here freed memory stays with the process.

Its caches for small blocks are off. PyTorch asks for aligned blocks, the library cuts a few bytes off their ends and
caches them; a freed block then lies between two such crumbs, a little too small for the next of its own size. Training
steps of RoBERTa-base's size take 1.9 GB without the caches and grew to 2.6 GB with them.

All this is decided when a process starts, hence it starts a second time.
"""

from __future__ import annotations

import os
import sys

# Of glibc: large blocks from the heap, which never shrinks; no caches of small ones.
TUNABLES = ":".join(
    f"glibc.malloc.{name}" for name in ("mmap_max=0", "trim_threshold=2147483647", "tcache_count=0", "mxfast=0")
)
# Whoever sets one of these has chosen.
CHOICES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_memory() -> bool:
    """Let this process keep what it frees: start it again with that in its environment.

    To be called before anything else, since all of it happens again: the same process, arguments and streams.

    Returns:
        In the process that has started again True; False where nothing changes: without glibc, and where the
        environment chooses otherwise.
    """
    if os.environ.get("GLIBC_TUNABLES") == TUNABLES:
        return True
    if sys.platform != "linux" or any(os.environ.get(name) for name in CHOICES) or not _has_glibc():
        return False
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": TUNABLES})
    except OSError:  # not to be started again: slower, nothing worse
        return False


def _has_glibc() -> bool:
    try:
        return str(os.confstr("CS_GNU_LIBC_VERSION")).startswith("glibc")
    except ValueError:  # another C library does not know the name
        return False
