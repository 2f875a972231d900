"""Kinds of draft beside EAGLE-3's, with and without training. Each registers itself when it is imported."""
