"""Text coloured by the origin of its tokens: accepted draft tokens, or the target's own."""

import sys

from transformers import PreTrainedTokenizerBase

from ..generation.stats import CycleRecord, CycleStreamer
from ..token_ids import IncrementalDecoder


ACCEPTED, OWN, FAINT, PLAIN = "\033[32m", "\033[1m", "\033[2m", "\033[0m"
LEGEND = f"{ACCEPTED}accepted draft tokens{PLAIN}, {OWN}the target's own tokens{PLAIN}"


class TokenRecorder(CycleStreamer):
    """Records tokens and whether the draft proposed them."""

    def __init__(self):
        self.pieces: list[tuple[list[int], bool]] = []

    def on_cycle(self, record: CycleRecord) -> None:
        """Record the accepted draft tokens and the target's own token of a cycle."""
        accepted = record.num_accepted_tokens
        self.pieces += [(record.tokens[:accepted], True), (record.tokens[accepted:], False)]

    def text(self, tokenizer: PreTrainedTokenizerBase, colored: bool) -> str:
        """The text, with accepted draft tokens in green and the target's own in bold if `colored`."""
        decoder = IncrementalDecoder(tokenizer)
        return "".join(painted(decoder, tokens, is_draft, colored) for tokens, is_draft in self.pieces)


class OriginStreamer(CycleStreamer):
    """Prints each cycle's tokens as they are committed, coloured by origin."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.decoder = IncrementalDecoder(tokenizer)

    def on_cycle(self, record: CycleRecord) -> None:
        """Print the accepted draft tokens, then the target's own."""
        accepted = record.num_accepted_tokens
        for tokens, is_draft in ((record.tokens[:accepted], True), (record.tokens[accepted:], False)):
            sys.stdout.write(painted(self.decoder, tokens, is_draft))
        sys.stdout.flush()

    def end(self) -> None:
        """End the line."""
        print()


def painted(decoder: IncrementalDecoder, tokens: list[int], is_draft: bool, colored: bool = True) -> str:
    """The text that `tokens` complete, in the colour of their origin."""
    text = "".join(map(decoder.add, tokens))
    return (ACCEPTED if is_draft else OWN) + text + PLAIN if colored and text else text
