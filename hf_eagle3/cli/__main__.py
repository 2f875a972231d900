"""`python -m hf_eagle3.cli`: the command line as a module, for launchers such as `accelerate launch -m`."""

import sys

from . import main


sys.exit(main())
