"""`hardpix predict` for a checkout or a cluster queue."""

import sys

from hardpix.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
