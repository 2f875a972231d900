"""`python -m hf_eagle3.cli`: the command line for launchers that want a module."""

import sys

from . import main


sys.exit(main())
