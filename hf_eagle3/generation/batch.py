"""`Batch`: which sequences are still running, how far each is, and their tokens. Counts on the CPU, one device buffer.

Places in `ids` are those of the output sequences; places in the caches are shifted by `cache_shift` (prompts given as
embeddings or by a cache alone have no ids). Does not know models. Shape letters: B sequences, A active ones.
"""

import copy

import torch

from .ops.transfer import on_device


GROWTH = 256  # tokens that there is room for at first, behind the prompt


def stand_ins(active: list[int], count: int) -> list[int]:
    """
    For each of `count` sequences the place among the `active` ones that runs in its stead: its own, or the first where
    it has ended. For passes that always run the whole batch.
    """
    return [active.index(number) if number in active else 0 for number in range(count)]


class Batch:
    """
    Args:
        input_ids: The prompt (B, P), left padded.
        width: Tokens that may be needed at most; room is made as they are written.
        pad_token_id: What stands behind a sequence's end.
        cache_length: Slots of the caches after prefill.
        attention_mask: (B, cache_length) with 0 at padding, or `None`.
        pads_ended: Whether sequences that end hold padding from there on while others run.

    Attributes:
        active: Original numbers of the running sequences, in the caches' storage order.
        lengths: Tokens committed of each sequence, padding on the left and the root included.
        is_done: Whether each has ended, though perhaps still kept beside others.
        ends: Where those ended.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        width: int,
        pad_token_id: int,
        cache_length: int,
        attention_mask: torch.Tensor | None,
        pads_ended: bool = False,
    ):
        self.num_sequences, self.prompt_length = input_ids.shape
        self.pad_token_id, self.width, self.pads_ended = pad_token_id, width, pads_ended
        room = min(width, self.prompt_length + GROWTH)
        self.ids = input_ids.new_full((self.num_sequences, room), self.pad_token_id, dtype=torch.long)
        self.ids[:, : self.prompt_length] = input_ids
        self.cache_shift = cache_length - self.prompt_length
        self.active = list(range(self.num_sequences))
        self.lengths = [self.prompt_length] * self.num_sequences
        self.is_done = [False] * self.num_sequences
        self.ends: dict[int, int] = {}
        self.visible = None
        self.num_visible = [cache_length] * self.num_sequences  # tokens of the prompt, padding not counted
        if attention_mask is not None:
            mask = attention_mask[:, :cache_length].bool()
            self.num_visible = mask.sum(dim=1).tolist()
            self.visible = torch.nn.functional.pad(mask, (0, room), value=True)

    @property
    def steps(self) -> list[int]:
        """Decoding steps behind each active sequence: tokens generated."""
        return [self.lengths[number] - self.prompt_length for number in self.active]

    @property
    def active_lengths(self) -> list[int]:
        """Tokens of each active sequence, padding on the left included."""
        return [self.lengths[number] for number in self.active]

    @property
    def cached_lengths(self) -> list[int]:
        """Slots of the target's cache that each active sequence has: all but its root."""
        return [self.lengths[number] - 1 + self.cache_shift for number in self.active]

    @property
    def final_cache_length(self) -> int:
        """Slots of a cache that holds the longest sequence but its last token; the prompt's before the first."""
        return max(max(self.lengths) - 1, self.prompt_length) + self.cache_shift

    @property
    def draft_positions(self) -> list[int]:
        """RoPE position of each active sequence's newest draft entry: the token position before the root's."""
        return [self.num_visible[n] + self.lengths[n] - self.prompt_length - 2 for n in self.active]

    @property
    def is_live(self) -> list[bool]:
        """Of each active sequence, whether it has not ended."""
        return [not self.is_done[number] for number in self.active]

    @property
    def padding_places(self) -> list[int]:
        """Places among the active ones of sequences that ended and are kept as padding."""
        return [place for place, live in enumerate(self.is_live) if not live and self.pads_ended]

    def with_active(self, numbers: list[int]) -> "Batch":
        """A view of the same tokens in which `numbers` are the active sequences, with lengths of its own."""
        view = copy.copy(self)
        view.active, view.lengths = numbers, list(self.lengths)
        return view

    def active_visible(self, device: torch.device) -> torch.Tensor | None:
        """Slots of the caches that are no padding, (A, slots), or `None`: all."""
        if self.visible is None:
            return None
        if len(self.active) == self.num_sequences:
            return self.visible.to(device)
        return self.visible[on_device(self.active, self.visible.device)].to(device)

    def roots(self) -> torch.Tensor:
        """The last committed token of each active sequence, (A,)."""
        if len(self.active) == 1:
            number = self.active[0]
            return self.ids[number, self.lengths[number] - 1 : self.lengths[number]]
        index = on_device([self.active, self.active_lengths], self.ids.device)
        return self.ids[index[0], index[1] - 1]

    def reserve(self, count: int) -> None:
        """Room for `count` more behind the longest sequence."""
        room = self.ids.shape[1]
        missing = max(self.lengths) + count - room
        if missing <= 0:
            return
        missing = max(missing, min(room, self.width - room))  # twice as much, up to what may be needed
        self.ids = torch.nn.functional.pad(self.ids, (0, missing), value=self.pad_token_id)
        if self.visible is not None:
            self.visible = torch.nn.functional.pad(self.visible, (0, missing), value=True)

    def write(self, tokens: torch.Tensor, offset: int = 0) -> None:
        """Put `tokens` (A, n) `offset` behind each active sequence's tokens, without committing them yet."""
        width = tokens.shape[1]
        self.reserve(offset + width)
        if len(self.active) == 1:
            number = self.active[0]
            start = self.lengths[number] + offset
            self.ids[number, start : start + width] = tokens[0]
        else:
            index = on_device([self.active, self.active_lengths], self.ids.device)[:, :, None]
            behind = torch.arange(offset, offset + width, device=self.ids.device)
            self.ids[index[0], index[1] + behind] = tokens

    def commit(self, counts: list[int], ended: dict[int, int]) -> None:
        """
        The first tokens written behind each active sequence, so many, now belong to it; `ended` gives the sequences
        that ended with them, and where. Those kept as padding hold padding from there on, as in plain generate.
        """
        for number, count in zip(self.active, counts, strict=True):
            self.lengths[number] += count
        self.ends |= ended
        for number in ended:
            self.is_done[number] = True
        for number in (self.active[place] for place in self.padding_places):
            self.ids[number, self.ends[number] :] = self.pad_token_id

    def remove(self, places: list[int]) -> list[int]:
        """
        Take the sequences at `places` of the active ones out; returns the places that stay, the last ones in the gaps:
        so hardly any keys and values have to move.
        """
        for place in places:
            number = self.active[place]
            self.ids[number, self.lengths[number] :] = self.pad_token_id
        staying = [place for place in range(len(self.active)) if place not in places]
        last = [place for place in staying if place >= len(staying)]
        kept = [place if place in staying else last.pop() for place in range(len(staying))]
        self.active = [self.active[place] for place in kept]
        return kept
