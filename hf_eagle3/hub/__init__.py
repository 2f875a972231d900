"""Drafts on the Hub and in serving engines: export, engine rules, model card, publishing, known public drafts.

Reading the dialects is `checkpoint.py`'s work, a layer below; running a draft is not known here.
"""
