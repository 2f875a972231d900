"""Training data: tokenised conversations with a loss mask, batches, precomputed features, regenerated answers."""
