"""Whether the hub can be reached, asked once and fast."""

from __future__ import annotations

import functools
import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

TIMEOUT = 3.0  # seconds


@functools.cache
def hub_reachable() -> bool:
    """Whether a connection to the Hugging Face hub opens; behind a proxy the answer is yes, for lack of a better one.

    The hub's client tries for about 25 s before it gives up; with the answer no, callers read its cache alone.
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
