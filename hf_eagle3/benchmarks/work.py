"""The calls to be measured: which prompts side by side, over which conversation, for how many tokens.

How answers that end are compared: every timed call writes a number of tokens that is fixed before, with EOS off, so
that all methods and plain generate write equally many. The number is what plain generate writes for that very batch
until its EOS, found by an untimed call. For one row this is its own answer, to the last token; in a batch, rows that
end before the longest run on, for every method alike. Conversations of several turns go on over plain generate's
answers, so that all methods answer the same.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle, groupby, islice

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.conversations import chat_ids, checked_template_kwargs
from ..data.limits import context_length, stop_tokens, up_to_stop
from ..data.messages import BadRow, Message
from ..token_ids import left_padded, padding_token_id
from .prompts import Prompt, Task, Turn
from .timing import timed, without_eos


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkSettings:
    """
    What is varied and how often; see the options of `hf-eagle3 benchmark`.

    Attributes:
        warm_up: Untimed calls of each method before the first timed one of a task, temperature and batch size.
        ignore_eos: Always write `max_new_tokens`.
        raw: Prompts as plain text, though the tokenizer has a chat template.
        chat_template_kwargs: Further arguments of the chat template; a prompt's own win.
    """

    temperatures: tuple[float, ...] = (0.0,)
    batch_sizes: tuple[int, ...] = (1,)
    seeds: tuple[int, ...] = (0,)
    repetitions: int = 3
    warm_up: int = 1
    max_new_tokens: int = 128
    ignore_eos: bool = False
    raw: bool = False
    chat_template_kwargs: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Conversations side by side, all with the same number of turns. `index` is its place in the task."""

    task: str
    temperature: float
    seed: int
    index: int
    prompts: tuple[Prompt, ...]

    @property
    def num_turns(self) -> int:
        """User turns of each conversation."""
        return len(self.prompts[0].turns)


@dataclass(frozen=True)
class Work:
    """One call of `generate`: `turn` of a batch, `inputs` (B, P), and how many tokens every method is to write."""

    batch: Batch
    turn: int
    inputs: dict[str, torch.Tensor]
    new_tokens: int

    @property
    def seed(self) -> int:
        """Another one for each batch, else every prompt would be sampled with the same noise."""
        return self.batch.seed + self.batch.index


class Workload:
    """
    Turns prompts into calls for one target.

    Args:
        target, tokenizer: The target and its tokenizer.
        settings: Lengths and whether EOS counts.

    Attributes:
        left_out: (task, question id, turn) of what does not fit the target's context.
        refused: The same of what the chat template refuses, with the turns after it.

    Raises:
        ValueError: arguments of the chat template that it does not have.
    """

    def __init__(self, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: BenchmarkSettings):
        self.target, self.tokenizer, self.settings = target, tokenizer, settings
        self.template_kwargs = checked_template_kwargs(settings.chat_template_kwargs, tokenizer)
        self.left_out: set[tuple[str, str, int]] = set()
        self.refused: set[tuple[str, str, int]] = set()
        self.pad_token_id = padding_token_id(tokenizer)
        self.stops = stop_tokens(target)
        self.context = context_length(target.config)

    def fitting(self, task: Task) -> Task:
        """
        The task without prompts that are too long for the context or that the chat template refuses.

        Raises:
            ValueError: none is left.
        """
        lengths = [self._length(task.name, prompt) for prompt in task.prompts]
        if all(length is None for length in lengths):
            raise ValueError(f"`--tasks` {task.name!r}: the chat template refuses every prompt; see the warnings.")
        pairs = [pair for pair in zip(task.prompts, lengths, strict=True) if pair[1] is not None]
        kept = tuple(prompt for prompt, length in pairs if self._fits(length))
        if not kept:
            raise ValueError(
                f"`--tasks` {task.name!r}: no prompt fits {self.context} positions of the target together with "
                f"`--max-new-tokens` {self.settings.max_new_tokens}; lower that or leave the task out."
            )
        dropped = [prompt for prompt, length in pairs if not self._fits(length)]
        self.left_out |= {(task.name, p.question_id, turn) for p in dropped for turn in range(len(p.turns))}
        return replace(task, prompts=kept)

    def works(self, batch: Batch) -> Iterator[Work]:
        """The batch's turns, one after the other; each costs one untimed call of plain generate."""
        conversations: list[list[Message]] = [[] for _ in batch.prompts]
        for turn in range(batch.num_turns):
            for prompt, messages in zip(batch.prompts, conversations, strict=True):
                messages += said(prompt.turns[turn])
            rows = []
            for prompt, messages in zip(batch.prompts, conversations, strict=True):
                try:
                    rows.append(self._ids(prompt, messages))
                except BadRow as error:  # a batch goes on together
                    self._refuse(batch.task, prompt, turn, error)
                    return
            if not self._fits(max(map(len, rows))):
                later = range(turn, batch.num_turns)
                self.left_out |= {(batch.task, p.question_id, t) for p in batch.prompts for t in later}
                return
            inputs = self._padded(rows)
            answers = self._answers(Work(batch, turn, inputs, self.settings.max_new_tokens))
            yield Work(batch, turn, inputs, answers.shape[1])
            for messages, answer in zip(conversations, answers.tolist(), strict=True):
                text = self.tokenizer.decode(up_to_stop(answer, self.stops), skip_special_tokens=True)
                messages.append({"role": "assistant", "content": text})

    def _length(self, task: str, prompt: Prompt) -> int | None:
        """Tokens of the first turn; `None` where the chat template refuses it, which is reported."""
        try:
            return len(self._ids(prompt, said(prompt.turns[0])))
        except BadRow as error:
            self._refuse(task, prompt, 0, error)
            return None

    def _refuse(self, task: str, prompt: Prompt, turn: int, error: BadRow) -> None:
        self.refused |= {(task, prompt.question_id, later) for later in range(turn, len(prompt.turns))}
        logger.warning("`--tasks` %r, prompt %s, turn %d is left out: %s", task, prompt.question_id, turn + 1, error)

    def first_turn(self, batch: Batch, new_tokens: int) -> Work:
        """The batch's first turn, to be written for `new_tokens` whatever the answer."""
        return Work(batch, 0, self._padded([self._ids(p, said(p.turns[0])) for p in batch.prompts]), new_tokens)

    def options(self, work: Work) -> dict:
        """Arguments of `generate` that all methods share."""
        temperature = work.batch.temperature
        options = {"max_new_tokens": work.new_tokens, "pad_token_id": self.pad_token_id, "do_sample": temperature > 0}
        if temperature > 0:
            options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        return options

    def _answers(self, work: Work) -> torch.Tensor:
        if not self.settings.ignore_eos:
            return timed(self.target, work.inputs, work.seed, **self.options(work))[0]
        with without_eos(self.target):
            return timed(self.target, work.inputs, work.seed, **self.options(work))[0]

    def _fits(self, length: int) -> bool:
        return self.context is None or length + self.settings.max_new_tokens <= self.context

    def _ids(self, prompt: Prompt, messages: list[Message]) -> list[int]:
        if self.tokenizer.chat_template is not None and not self.settings.raw:
            return chat_ids(self.tokenizer, messages, prompt=True, options=self.template_kwargs | prompt.options)
        return list(self.tokenizer("\n".join(message["content"] for message in messages))["input_ids"])

    def _padded(self, prompts: list[list[int]]) -> dict[str, torch.Tensor]:
        return left_padded(prompts, self.pad_token_id, self.target.device)


def said(turn: Turn) -> list[Message]:
    """The messages of a turn."""
    return [{"role": "user", "content": turn}] if isinstance(turn, str) else list(turn)


def batches(task: Task, temperature: float, seed: int, batch_size: int) -> list[Batch]:
    """
    The task in batches of exactly `batch_size`; the last of each number of turns is filled up from the beginning.
    """
    out: list[Batch] = []
    for _, group in groupby(sorted(task.prompts, key=lambda p: len(p.turns)), key=lambda p: len(p.turns)):
        prompts = list(group)
        for start in range(0, len(prompts), batch_size):
            chosen = tuple(islice(cycle(prompts), start, start + batch_size))
            out.append(Batch(task.name, temperature, seed, len(out), chosen))
    return out
