"""How a token is chosen: logits processors, noise, where sequences end."""
