"""`python -m secretfs` is the command `secretfs`."""

import sys

from secretfs.cli import main

sys.exit(main())
