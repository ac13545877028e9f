"""`python -m prompt_transfer`: the same as `prompt-transfer`."""

import sys

from prompt_transfer.cli import start

if __name__ == "__main__":
    sys.exit(start())
