"""`Rows`: which rows are still running, how far each is, and their tokens. Host-side counts, one device buffer.

Does not know models. Columns of `ids` are those of the output sequences; columns of the caches are shifted by
`cache_shift` (prompts given as embeddings or by a cache alone have no ids).
Shape letters: B rows of the batch, A active rows.
"""

import torch

from .ops.transfer import on_device


GROWTH = 256  # columns that there is room for at first, behind the prompt


class Rows:
    """
    Args:
        input_ids: The prompt (B, P), left padded.
        width: Columns that may be needed at most; room is made as tokens are written.
        pad_token_id: What stands after a row's end.
        cache_length: Columns of the caches after prefill.
        attention_mask: (B, cache_length) with 0 at padding, or `None`.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        width: int,
        pad_token_id: int,
        cache_length: int,
        attention_mask: torch.Tensor | None,
    ):
        self.num_rows, self.prompt_length = input_ids.shape
        self.pad_token_id = pad_token_id
        self.width = width
        room = min(width, self.prompt_length + GROWTH)
        self.ids = input_ids.new_full((self.num_rows, room), self.pad_token_id, dtype=torch.long)
        self.ids[:, : self.prompt_length] = input_ids
        self.cache_shift = cache_length - self.prompt_length
        self.active = list(range(self.num_rows))  # original row numbers, in the caches' storage order
        self.lengths = [self.prompt_length] * self.num_rows  # columns of `ids` committed, the root included
        self.is_done = [False] * self.num_rows  # ended, though perhaps still running beside others
        self.ends: dict[int, int] = {}  # where those ended
        self.pads_ended_rows = False  # whether what they hold from there on is padding
        self.visible = None
        self.num_visible = [cache_length] * self.num_rows  # tokens of the prompt, padding not counted
        if attention_mask is not None:
            mask = attention_mask[:, :cache_length].bool()
            self.num_visible = mask.sum(dim=1).tolist()
            self.visible = torch.nn.functional.pad(mask, (0, room), value=True)

    @property
    def steps(self) -> list[int]:
        """Steps behind each active row: tokens generated."""
        return [self.lengths[row] - self.prompt_length for row in self.active]

    @property
    def active_lengths(self) -> list[int]:
        """Tokens of each active row, the prompt's columns included."""
        return [self.lengths[row] for row in self.active]

    def cycles_left(self, cycles: list[int], max_length: int) -> list[float]:
        """How many cycles each active row needs to `max_length` at the pace of its `cycles` so far."""
        left = []
        for row, steps in zip(self.active, self.steps, strict=True):
            pace = (cycles[row] + 1) / (steps + 1)
            left.append(0.0 if self.is_done[row] else (max_length - self.lengths[row]) * pace)
        return left

    @property
    def cached_columns(self) -> list[int]:
        """Columns of the target's cache each active row has: all but its root."""
        return [self.lengths[row] - 1 + self.cache_shift for row in self.active]

    @property
    def final_cache_length(self) -> int:
        """Columns of a cache that holds all tokens of the longest row but its last; the prompt's before the first."""
        return max(max(self.lengths) - 1, self.prompt_length) + self.cache_shift

    @property
    def draft_positions(self) -> list[int]:
        """RoPE position of each active row's newest draft entry: the token position before the root's."""
        return [self.num_visible[row] + self.lengths[row] - self.prompt_length - 2 for row in self.active]

    def active_visible(self, device: torch.device) -> torch.Tensor | None:
        """Columns of the caches that are no padding, (A, columns), or `None`: all."""
        if self.visible is None:
            return None
        if len(self.active) == self.num_rows:
            return self.visible.to(device)
        return self.visible[on_device(self.active, self.visible.device)].to(device)

    def roots(self) -> torch.Tensor:
        """The last committed token of each active row, (A,)."""
        if len(self.active) == 1:
            row = self.active[0]
            return self.ids[row, self.lengths[row] - 1 : self.lengths[row]]
        places = on_device([self.active, self.active_lengths], self.ids.device)
        return self.ids[places[0], places[1] - 1]

    def reserve(self, columns: int) -> None:
        """Room for `columns` more behind the longest row."""
        room = self.ids.shape[1]
        missing = max(self.lengths) + columns - room
        if missing <= 0:
            return
        missing = max(missing, min(room, self.width - room))  # twice as much, up to what may be needed
        self.ids = torch.nn.functional.pad(self.ids, (0, missing), value=self.pad_token_id)
        if self.visible is not None:
            self.visible = torch.nn.functional.pad(self.visible, (0, missing), value=True)

    def write(self, tokens: torch.Tensor) -> None:
        """Put `tokens` (A, n) behind each active row's tokens, without committing them yet."""
        width = tokens.shape[1]
        self.reserve(width)
        if len(self.active) == 1:
            row = self.active[0]
            self.ids[row, self.lengths[row] : self.lengths[row] + width] = tokens[0]
        else:
            places = on_device([self.active, self.active_lengths], self.ids.device)[:, :, None]
            self.ids[places[0], places[1] + torch.arange(width, device=self.ids.device)] = tokens

    def commit(self, counts: list[int]) -> None:
        """The first `counts[a]` tokens written behind each active row now belong to it."""
        for row, count in zip(self.active, counts, strict=True):
            self.lengths[row] += count

    @property
    def idle_places(self) -> list[int]:
        """Places of active rows that ended, are padded, and run along beside others."""
        return [a for a, row in enumerate(self.active) if self.is_done[row] and self.pads_ended_rows]

    def pad_done(self) -> None:
        """Idle rows hold padding from their end on, as in plain generate."""
        for row in (self.active[place] for place in self.idle_places):
            self.ids[row, self.ends[row] :] = self.pad_token_id

    def finish(self, places: list[int]) -> list[int]:
        """
        Take the rows at `places` of the active ones out; returns the places that stay, the last ones in the gaps: so
        hardly any keys and values have to move.
        """
        for place in places:
            row = self.active[place]
            self.ids[row, self.lengths[row] :] = self.pad_token_id
        staying = [place for place in range(len(self.active)) if place not in places]
        last = [place for place in staying if place >= len(staying)]
        kept = [place if place in staying else last.pop() for place in range(len(staying))]
        self.active = [self.active[place] for place in kept]
        return kept
