"""Data of training: conversations to tokens with a loss mask, batches, cached features, regeneration by the target."""
