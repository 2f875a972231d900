"""Other engines, run beside ours: a vLLM server, and whether it serves a draft as we do."""
