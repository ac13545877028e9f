"""What freed memory costs: counted in page faults of processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from prompt_transfer.allocation import CHOICES, HUGE_PAGES

LOOP = """
import resource
from prompt_transfer.allocation import keep_memory
changed = keep_memory() if {keep} else False
import torch
def step():
    torch.ones(8_000_000)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(int(changed), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(
    sys.platform != "linux" or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="no glibc here"
)


def measured(keep: bool, **environment: str) -> tuple[int, int]:
    own = {name: value for name, value in os.environ.items() if name not in (*CHOICES, HUGE_PAGES)}
    ran = subprocess.run(
        [sys.executable, "-c", LOOP.format(keep=keep)],
        env=own | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    changed, faults = map(int, ran.stdout.split())
    return changed, faults


@glibc
def test_a_step_does_not_fault_its_tensors_in_again() -> None:
    _, usual = measured(False)
    changed, kept = measured(True)
    assert changed == 1
    # 32 MB are 7,812 pages of 4 KiB, ten times, less where the system gives a part of them in large pages.
    assert usual > 10 * 512
    assert kept < 1_000


def test_who_has_chosen_keeps_the_choice() -> None:
    changed, _ = measured(True, MALLOC_TRIM_THRESHOLD_="100000")
    assert changed == 0
