"""`python -m hf_eagle3.compat`: see `contract.py`."""

import sys

from .contract import main


sys.exit(main())
