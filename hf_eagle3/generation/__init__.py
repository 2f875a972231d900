"""Drafting, verification and the loop that ties them, inside transformers' `generate`."""
