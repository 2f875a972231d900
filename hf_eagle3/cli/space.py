"""`hf-eagle3 space`: serve the Gradio Space locally.

The Space itself is `spaces/eagle3_demo`, which wheels contain as `hf_eagle3/eagle3_demo`.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from ..errors import UserError, is_raised_by
from ..model_loading import needs_extra


PAGE_MODULES = ("app", "limits", "pair")  # their errors are user errors, like those of this package
FOLDERS = (
    Path(__file__).parents[1] / "eagle3_demo",  # in a wheel
    Path(__file__).parents[2] / "spaces" / "eagle3_demo",  # in a clone
)


def run(arguments: argparse.Namespace) -> int:
    needs_extra("space", ("gradio",))
    folder = next((folder for folder in FOLDERS if (folder / "app.py").is_file()), None)
    if folder is None:
        raise ValueError(f"The files of the Space are in neither {FOLDERS[0]} nor {FOLDERS[1]}; reinstall hf-eagle3.")
    sys.path.insert(0, str(folder))
    app, pair = importlib.import_module("app"), importlib.import_module("pair")
    kwargs = json.dumps(arguments.chat_template_kwargs) if arguments.chat_template_kwargs else ""
    is_local = arguments.host in app.LOOPBACK
    try:
        settings = pair.PairSettings(
            arguments.target, arguments.draft, arguments.pair, arguments.dtype, arguments.device, kwargs
        )
        app.main(settings, is_local, server_name=arguments.host, server_port=arguments.port, inbrowser=arguments.open)
    except ValueError as error:
        if not is_raised_by(error, PAGE_MODULES):
            raise
        raise UserError(str(error)) from error
    except OSError as error:
        if arguments.port is None or "empty port" not in str(error):
            raise
        raise ValueError(f"`--port` {arguments.port} is in use; choose another, or omit it for a free one.") from None
    return 0
