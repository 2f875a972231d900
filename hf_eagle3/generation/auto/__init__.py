"""The tree mode auto: what passes cost here, how far the draft can be trusted, what to draft."""
