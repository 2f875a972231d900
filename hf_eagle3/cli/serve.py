"""`hf-eagle3 serve`: transformers' own OpenAI-compatible server, with a draft attached to the target.

Requests, streaming, templates and tools are that server's; it runs `generate` for one request after the other. Logs
one line per request: tokens, tokens/s, tau.
"""

import argparse
import logging

from transformers import PreTrainedModel

from ..attachment import attach
from ..errors import UserError, explained
from ..generation import attached
from ..model_loading import dtype_for, load_draft, needs_extra, usable_device
from .inputs import with_tree


REMEDY = "See `transformers serve --help`."


def run(arguments: argparse.Namespace) -> int:
    needs_extra("serve", ("fastapi", "uvicorn", "openai"))
    import typer

    from ..compat.serving import Serve, server_fault, server_models

    if (fault := server_fault()) is not None:
        raise UserError(f"This transformers has no server that a draft can be attached to: {fault}.")
    device = usable_device(arguments.device)
    options = {
        "--device": device,
        "--dtype": dtype_for(arguments.target, arguments.dtype, device),
        "--host": arguments.host,
        "--port": str(arguments.port),
    }
    words = [arguments.target, *(word for pair in options.items() for word in pair), *arguments.server_options]
    log_requests()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(Serve)
    served: list[PreTrainedModel] = []

    def seen(model: PreTrainedModel) -> None:
        if not served:
            served.append(model)
            attach(model, with_tree(load_draft(arguments.draft, model), arguments))

    with server_models(seen), explained("The server cannot start", REMEDY, by=("transformers",)):
        app(args=words, prog_name="hf-eagle3 serve --target T --", standalone_mode=True)
    return 0


def log_requests() -> None:
    """Print what is logged about each call of a target with an attached draft."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s hf-eagle3: %(message)s"))
    attached.logger.addHandler(handler)
    attached.logger.setLevel(logging.INFO)
    attached.logger.propagate = False
