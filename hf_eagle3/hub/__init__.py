"""Drafts on the Hub and in serving engines: export, engine rules, model card, publishing, known public drafts.

Does not know how checkpoints are read (`checkpoint.py`, `dialects.py`) or how a draft runs.
"""
