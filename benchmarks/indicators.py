"""Time and memory of all indicators of prompt embeddings, for the number of prompts of a large study.

    python benchmarks/indicators.py --prompts 500 --threads 2

Prints one row per indicator: seconds, CPU seconds, and the process's peak memory so far.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from prompt_transfer.analysis.indicators import INDICATORS
from prompt_transfer.utils import results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    shape = (options.prompts, options.length, options.width)
    inputs = {name: torch.randn(shape, generator=generator) for name in ("prompts", "initial")}
    rows = []
    for name, row in INDICATORS.items():
        if not set(row.needs) <= inputs.keys():
            continue
        wall, processor = time.perf_counter(), time.process_time()
        row.function(*(inputs[need] for need in row.needs))
        seconds, cpu = time.perf_counter() - wall, time.process_time() - processor
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append({"indicator": name, "seconds": seconds, "processor": cpu, "peak GB": peak})
    total = {key: sum(row[key] for row in rows) for key in ("seconds", "processor")}
    title = f"{' x '.join(map(str, shape))}, {options.threads} threads"
    results.show([*rows, {"indicator": "all", **total}], title=title)


if __name__ == "__main__":
    main()
