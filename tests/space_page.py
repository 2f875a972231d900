"""The Space's page, served on this machine for tests."""

from collections.abc import Iterator
from contextlib import contextmanager

from limits import Limits
from pair import PairSettings


@contextmanager
def served(**limits) -> Iterator[tuple[str, object]]:
    """(address, blocks) of the page with the embedded pair, closed at the end."""
    import app  # needs gradio

    blocks = app.build(PairSettings(device="cpu"), Limits(**limits), is_local=True)
    _, address, _ = app.launch(blocks, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        yield address, blocks
    finally:
        blocks.close()
