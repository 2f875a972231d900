"""Drafters that need no training: text that repeats itself, n-grams of parallel guesses, any small model."""
