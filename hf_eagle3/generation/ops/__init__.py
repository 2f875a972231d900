"""Tensor operations that know nothing of speculation."""
