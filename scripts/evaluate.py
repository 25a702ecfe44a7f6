"""`hardpix evaluate` for a checkout or a cluster queue."""

import sys

from hardpix.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
