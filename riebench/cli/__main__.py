"""Runs the command line as `python -m riebench.cli`."""

import sys

from riebench.cli import main

sys.exit(main())
