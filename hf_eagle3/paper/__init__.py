"""`hf-eagle3 paper`: the tables and figures of EAGLE-3's paper on any target, with drafts trained on equal data."""
