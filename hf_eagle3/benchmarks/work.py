"""The calls to measure: which prompts form a batch, after which conversation, for how many new tokens.

All methods generate the same number of tokens per call, with EOS disabled: as many as plain generate needs for that
batch until EOS, found by an untimed call. At batch size 1 this is exactly the answer; in a batch, every method
continues shorter answers up to the longest. Later turns of a conversation follow plain generate's answers, so that all
methods see the same prompts. Does not know methods or times.
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
    What is varied, and how often it is measured; see the options of `hf-eagle3 benchmark`.

    Attributes:
        warm_up: Untimed calls of each method before the first timed one of a task, temperature and batch size.
        ignore_eos: Always generate `max_new_tokens`.
        raw: Do not apply the tokenizer's chat template.
        chat_template_kwargs: Extra arguments of the chat template; those of a prompt take precedence.
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
    """A batch of conversations with the same number of turns. `index` is its position in the task."""

    task: str
    temperature: float
    seed: int
    index: int
    prompts: tuple[Prompt, ...]

    @property
    def num_turns(self) -> int:
        """Number of user turns of each conversation."""
        return len(self.prompts[0].turns)


@dataclass(frozen=True)
class Work:
    """One call of `generate`: the `turn` of a batch, its `inputs` (B, P), and the number of tokens to generate."""

    batch: Batch
    turn: int
    inputs: dict[str, torch.Tensor]
    new_tokens: int

    @property
    def seed(self) -> int:
        """Different for each batch; otherwise all prompts would be sampled with the same noise."""
        return self.batch.seed + self.batch.index


class Workload:
    """
    Converts prompts to calls for one target.

    Args:
        target, tokenizer: The target and its tokenizer.
        settings: Lengths, EOS handling and chat template.

    Attributes:
        left_out: (task, question id, turn) of prompts that do not fit into the target's context.
        refused: The same for prompts that the chat template rejects, and for the turns after them.

    Raises:
        ValueError: arguments that the chat template does not use.
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
        The task without prompts that exceed the context or that the chat template rejects.

        Raises:
            ValueError: no prompt remains.
        """
        lengths = [self._length(task.name, prompt) for prompt in task.prompts]
        if all(length is None for length in lengths):
            raise ValueError(f"`--tasks` {task.name!r}: the chat template rejects every prompt; see the warnings.")
        pairs = [pair for pair in zip(task.prompts, lengths, strict=True) if pair[1] is not None]
        kept = tuple(prompt for prompt, length in pairs if self._fits(length))
        if not kept:
            raise ValueError(
                f"`--tasks` {task.name!r}: no prompt fits into the target's context of {self.context} tokens together "
                f"with `--max-new-tokens` {self.settings.max_new_tokens}; lower it or omit the task."
            )
        dropped = [prompt for prompt, length in pairs if not self._fits(length)]
        self.left_out |= {(task.name, p.question_id, turn) for p in dropped for turn in range(len(p.turns))}
        return replace(task, prompts=kept)

    def works(self, batch: Batch) -> Iterator[Work]:
        """The turns of a batch in order; each needs one untimed call of plain generate."""
        conversations: list[list[Message]] = [[] for _ in batch.prompts]
        for turn in range(batch.num_turns):
            for prompt, messages in zip(batch.prompts, conversations, strict=True):
                messages += messages_of_turn(prompt.turns[turn])
            encoded = []
            for prompt, messages in zip(batch.prompts, conversations, strict=True):
                try:
                    encoded.append(self._ids(prompt, messages))
                except BadRow as error:  # ends the whole batch, whose turns advance together
                    self._refuse(batch.task, prompt, turn, error)
                    return
            if not self._fits(max(map(len, encoded))):
                later = range(turn, batch.num_turns)
                self.left_out |= {(batch.task, p.question_id, t) for p in batch.prompts for t in later}
                return
            inputs = self._padded(encoded)
            answers = self._answers(Work(batch, turn, inputs, self.settings.max_new_tokens))
            yield Work(batch, turn, inputs, answers.shape[1])
            for messages, answer in zip(conversations, answers.tolist(), strict=True):
                text = self.tokenizer.decode(up_to_stop(answer, self.stops), skip_special_tokens=True)
                messages.append({"role": "assistant", "content": text})

    def _length(self, task: str, prompt: Prompt) -> int | None:
        """Number of tokens of the first turn; `None` if the chat template rejects it, which is logged."""
        try:
            return len(self._ids(prompt, messages_of_turn(prompt.turns[0])))
        except BadRow as error:
            self._refuse(task, prompt, 0, error)
            return None

    def _refuse(self, task: str, prompt: Prompt, turn: int, error: BadRow) -> None:
        self.refused |= {(task, prompt.question_id, later) for later in range(turn, len(prompt.turns))}
        logger.warning("`--tasks` %r, prompt %s, turn %d is skipped: %s", task, prompt.question_id, turn + 1, error)

    def first_turn(self, batch: Batch, new_tokens: int) -> Work:
        """The first turn of a batch with a given number of new tokens."""
        return Work(
            batch, 0, self._padded([self._ids(p, messages_of_turn(p.turns[0])) for p in batch.prompts]), new_tokens
        )

    def options(self, work: Work) -> dict:
        """Arguments of `generate` common to all methods."""
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


def messages_of_turn(turn: Turn) -> list[Message]:
    """A turn as chat messages."""
    return [{"role": "user", "content": turn}] if isinstance(turn, str) else list(turn)


def batches(task: Task, temperature: float, seed: int, batch_size: int) -> list[Batch]:
    """
    The task in batches of exactly `batch_size`, prompts of equally many turns together. An incomplete last batch is
    filled up with the first prompts.
    """
    out: list[Batch] = []
    for _, group in groupby(sorted(task.prompts, key=lambda p: len(p.turns)), key=lambda p: len(p.turns)):
        prompts = list(group)
        for start in range(0, len(prompts), batch_size):
            chosen = tuple(islice(cycle(prompts), start, start + batch_size))
            out.append(Batch(task.name, temperature, seed, len(out), chosen))
    return out
