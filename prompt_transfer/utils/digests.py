"""Digests by which files name the numbers that they were made of."""

from __future__ import annotations

import hashlib

from torch import Tensor


def digest_of(rows: Tensor) -> str:
    """SHA-256 of the shape and numbers of float32 rows [P, H]: what is known of a prompt is kept under it."""
    values = rows.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{tuple(rows.shape)}".encode() + values).hexdigest()
