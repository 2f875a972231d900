"""Kinds of draft beside EAGLE-3's, each a folder or file of its own, and their registrations."""

from . import block


def register() -> None:
    """Let `generate` take them."""
    block.register()
