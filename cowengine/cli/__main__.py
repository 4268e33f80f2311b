"""`python -m cowengine.cli`: the command line where the entry point script is not on the PATH."""

from __future__ import annotations

import sys

from cowengine.cli.main import main

sys.exit(main())
