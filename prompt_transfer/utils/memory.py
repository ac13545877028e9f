"""Peak memory of this process."""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from pathlib import Path


def peak_memory() -> float:
    """Return the largest resident set size of this process so far, in MiB; NaN where the system does not tell."""
    # Unlike `ru_maxrss`, VmHWM does not begin with the size of the parent process.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, else KiB.
    return found / 2**20 if sys.platform == "darwin" else found / 1024
