"""One verification: the target's pass over a tree, its masks and its cache."""
