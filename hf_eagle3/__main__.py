"""`python -m hf_eagle3`: the command line."""

import sys

from .cli import main


sys.exit(main())
