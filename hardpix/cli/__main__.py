"""``python -m hardpix.cli``."""

import sys

from hardpix.cli import main

sys.exit(main())
