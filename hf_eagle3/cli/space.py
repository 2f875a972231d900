"""`hf-eagle3 space`: the Gradio Space on this machine. Does not know the page: that is `spaces/eagle3_demo`, which a
wheel carries as `hf_eagle3/eagle3_demo`."""

import argparse
import importlib
import json
import sys
from pathlib import Path

from .loading import DTYPES, add_template_argument, needs_extra, positive


HELP = "a page in the browser: race plain generate, see accepted tokens, plots and draft trees (extra: space)"
FOLDERS = (
    Path(__file__).parents[1] / "eagle3_demo",  # in a wheel
    Path(__file__).parents[2] / "spaces" / "eagle3_demo",  # in a clone
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", default="", help="directory or Hub id (default: the embedded pair)")
    parser.add_argument("--draft", default="", help="directory or Hub id of its EAGLE-3 draft model")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="of both models (default: auto)")
    parser.add_argument("--device", default="", help="cpu, cuda, mps, ... (default: the accelerator, else cpu)")
    add_template_argument(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 shows the page to others (default: 127.0.0.1)",
    )
    parser.add_argument("--port", type=port, help="(default: the first free one from 7860)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def port(text: str) -> int:
    """An argument type."""
    number = positive(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port; give 1 to 65535")
    return number


def run(arguments: argparse.Namespace) -> int:
    needs_extra("space", ("gradio",))
    folder = next((folder for folder in FOLDERS if (folder / "app.py").is_file()), None)
    if folder is None:
        raise ValueError(f"The page's files are in neither {FOLDERS[0]} nor {FOLDERS[1]}; install hf-eagle3 anew.")
    sys.path.insert(0, str(folder))
    app, pair = importlib.import_module("app"), importlib.import_module("pair")
    kwargs = json.dumps(arguments.chat_template_kwargs) if arguments.chat_template_kwargs else ""
    settings = pair.Settings(arguments.target, arguments.draft, arguments.dtype, arguments.device, kwargs)
    is_local = arguments.host in app.LOOPBACK
    try:
        app.main(settings, is_local, server_name=arguments.host, server_port=arguments.port, inbrowser=arguments.open)
    except OSError as error:
        if arguments.port is None or "empty port" not in str(error):
            raise
        raise ValueError(f"`--port` {arguments.port} is taken; give another, or none for a free one.") from None
    return 0
