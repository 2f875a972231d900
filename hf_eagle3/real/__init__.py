"""A real target and a draft of its own: SmolLM2-135M-Instruct, from nothing. Nothing else imports this package."""
