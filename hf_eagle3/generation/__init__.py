"""Drafting, verification and the loop that ties them, inside the host's `generate`."""
