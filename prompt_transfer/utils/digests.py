"""Digests that identify the tensors a file was computed from."""

from __future__ import annotations

import hashlib

from torch import Tensor


def digest_of(rows: Tensor) -> str:
    """Return the SHA-256 of the shape and float32 values of `rows` [P, H], the key of a prompt's cached results."""
    values = rows.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{tuple(rows.shape)}".encode() + values).hexdigest()
