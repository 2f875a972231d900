"""Draft trees as tensors."""
