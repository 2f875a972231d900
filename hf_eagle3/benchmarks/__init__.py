"""Drafts measured against plain generate and against the host's own speculation: prompts, methods, runs, report."""
