"""A fast check whether the Hugging Face hub is reachable."""

from __future__ import annotations

import functools
import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

TIMEOUT = 3.0  # seconds


@functools.cache
def hub_reachable() -> bool:
    """Return whether a connection to the Hugging Face hub opens; True if a proxy is configured, without a check.

    The hub's client retries for about 25 s. When this returns False, callers read the local cache only.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    if getproxies():
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((address.hostname or "", address.port or 443), TIMEOUT).close()
    except OSError:
        return False
    return True
