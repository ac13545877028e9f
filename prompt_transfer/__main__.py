"""Entry point of `python -m prompt_transfer`."""

import sys

from prompt_transfer.cli import start

if __name__ == "__main__":
    sys.exit(start())
