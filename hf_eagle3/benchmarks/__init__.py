"""Benchmark of a draft against plain `generate` and transformers' own speculation: prompts, methods, runs, report."""
