"""The script that `train.sh` of release 2.0 calls; see `prompt_hub.train`."""

import sys

from prompt_hub.train import main

if __name__ == "__main__":
    sys.exit(main())
