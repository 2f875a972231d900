"""Drafting: what the draft reads, its keys and values, the tree it grows."""
