"""What freed memory costs: counted in page faults of processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from prompt_transfer.allocation import CHOICES, HUGE_PAGES, Growth

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


GROWING = """
from prompt_transfer.allocation import Growth, keep_memory
keep_memory()
import torch
growth = Growth()
def step(size):
    torch.ones(size)
    return growth.check()
print(*[int(step(size)) for size in (8_000_000, 8_000_000, 8_000_000, 8_000_000, 80_000_000, 80_000_000, 80_000_000)])
print(int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20)
"""


@glibc
def test_a_process_that_has_grown_gives_back_what_is_free() -> None:
    own = {name: value for name, value in os.environ.items() if name not in (*CHOICES, HUGE_PAGES)}
    ran = subprocess.run([sys.executable, "-c", GROWING], env=own, capture_output=True, text=True, check=True)
    given_back, with_largest = ran.stdout.splitlines()
    # At first, and where a step took more than the ones before; not where it takes the same.
    assert given_back.split() == ["1", "0", "0", "0", "1", "0", "0"]
    assert int(with_largest) > 300


@glibc
def test_who_keeps_no_memory_gives_none_back() -> None:
    assert not Growth().check()


def test_who_has_chosen_keeps_the_choice() -> None:
    changed, _ = measured(True, MALLOC_TRIM_THRESHOLD_="100000")
    assert changed == 0
