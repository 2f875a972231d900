"""Block drafters: every level of the tree from one pass (DFlash, JetSpec)."""
