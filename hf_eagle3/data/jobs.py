"""One conversation to regenerate: open questions, answers so far, and the token ids of every turn.

Does not know how answers are generated or where they are written.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from .messages import BadRow, Message, messages_of, plain_text, questions, row_of, template_options


@dataclass(frozen=True)
class Sampling:
    """
    Sampling parameters. Batches, or conversations at an endpoint, cycle through `temperatures`; 0 is greedy. Text
    prompts (for targets without a chat template) are truncated to `prompt_tokens` tokens and continued.
    """

    max_new_tokens: int = 512
    temperatures: tuple[float, ...] = (1.0,)
    top_p: float = 1.0
    seed: int = 0
    prompt_tokens: int = 32

    def temperature(self, number: int) -> float:
        """Temperature of a batch, or of a conversation."""
        return self.temperatures[number % len(self.temperatures)]


@dataclass
class TurnTokens:
    """
    Consecutive turns as the exact token ids that the target read and generated.

    Attributes:
        input_ids: Token ids, (L,).
        loss_mask: 1 where the target generated the token, (L,).
        num_messages: Messages of the conversation up to the last of these turns.
    """

    input_ids: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    num_messages: int = 0


@dataclass
class Job:
    """
    A conversation in progress.

    Attributes:
        index: Position in the data.
        messages: Messages so far.
        asked: Open questions, one answer each: a user message, possibly followed by recorded tool calls and results.
        batch: Index of its batch in the data; does not depend on what earlier runs have answered.
        text: Plain text to continue, instead of messages: its first tokens, or all of it if `is_prompt`.
        options: Arguments of the chat template for this sample, tools included.
        tokens: One entry for all turns; several if the chat template rewrites earlier turns (templates that drop
            reasoning do), one for each run of turns in between.
        text_only: Some answer came without token ids.
        num_answers: Number of answered turns.
        num_kept: Number of messages up to the last answer.
        problem: Why it could not be answered.
        can_retry: A later run may succeed (the endpoint failed, not the conversation).
        cut: Why it ends early; the answers before are kept.
    """

    index: int
    messages: list[Message]
    asked: list[list[Message]]
    batch: int = 0
    text: str | None = None
    is_prompt: bool = False
    options: dict = field(default_factory=dict)
    tokens: list[TurnTokens] = field(default_factory=list)
    text_only: bool = False
    num_answers: int = 0
    num_kept: int = 0
    problem: str | None = None
    can_retry: bool = False
    cut: str | None = None

    @classmethod
    def from_sample(cls, index: int, sample: dict, batch: int = 0, template_kwargs: Mapping | None = None) -> "Job":
        """
        The job of a sample.

        Raises:
            BadRow: it holds no question, or neither a conversation nor text.
        """
        row = row_of(sample)
        if isinstance(row.get("prompt"), str) and row.get("completion") is None:
            row = {name: row.get(name) for name in ("prompt", "tools", "chat_template_kwargs")}
        messages = messages_of(row)
        if messages is None:
            if row.get("text") is None:
                raise BadRow("Regeneration needs conversations or `text`; this sample is tokenised.")
            return cls(index, [], [], batch, text=plain_text(row["text"], "`text`"))
        before, asked = questions(messages)
        if not asked:
            raise BadRow("It has no question to answer.")
        job = cls(index, before, asked, batch, options=template_options(row, template_kwargs))
        if has_lone_surrogate(json.dumps([job.messages, job.asked, job.options], ensure_ascii=False)):
            raise BadRow("It contains a lone surrogate, which is not valid Unicode; fix or remove it.")
        return job

    def as_plain_text(self) -> None:
        """For a target without a chat template: a single question becomes a text to continue."""
        if len(self.asked) > 1 or len(self.asked[0]) > 1:
            raise BadRow(
                "It is a multi-turn conversation, but the tokenizer has no chat template; use single prompts."
            )
        self.text = "\n".join(message["content"] for message in (*self.messages, *self.asked.pop()))
        self.options, self.is_prompt = {}, True

    def add_answer(
        self,
        text: str,
        prompt_ids: list[int] | None = None,
        answer_ids: list[int] | None = None,
        tool_calls: list[dict] | None = None,
    ) -> None:
        """Append the target's answer (or the continued text), with prompt and answer token ids if they are known."""
        if self.text is not None:
            self.text = text
        else:
            calls = {"tool_calls": tool_calls} if tool_calls else {}
            self.messages.append({"role": "assistant", "content": text} | calls)
        self.num_answers, self.num_kept = self.num_answers + 1, len(self.messages)
        if not prompt_ids or not answer_ids:
            self.text_only = True
            return
        if not self.tokens or prompt_ids[: len(self.tokens[-1].input_ids)] != self.tokens[-1].input_ids:
            self.tokens.append(TurnTokens())
        last = self.tokens[-1]
        last.loss_mask += [0] * (len(prompt_ids) - len(last.input_ids)) + [1] * len(answer_ids)
        last.input_ids = prompt_ids + answer_ids
        last.num_messages = len(self.messages)

    def end_early(self, reason: str) -> None:
        """Drop the open questions. Earlier answers are kept; without any, `reason` becomes the `problem`."""
        self.asked.clear()
        if self.num_answers:
            self.cut = reason
        else:
            self.problem = reason

    def records(self) -> list[dict]:
        """The lines of the output file, each a training sample: one per entry of `tokens`."""
        parts = [TurnTokens(num_messages=self.num_kept)] if self.text_only or not self.tokens else self.tokens
        lines = []
        for number, part in enumerate(parts, start=1):
            line: dict = {"id": self.index, "part": number, "parts": len(parts)}
            line |= {"messages": self.messages[: part.num_messages]} if self.text is None else {"text": self.text}
            line |= self.template_fields()
            if part.input_ids:
                line |= {"input_ids": part.input_ids, "loss_mask": part.loss_mask}
            lines.append(line)
        return lines

    def template_fields(self) -> dict:
        """`options` under the keys of samples and requests."""
        own = {name: value for name, value in self.options.items() if name != "tools"}
        tools = {"tools": self.options["tools"]} if "tools" in self.options else {}
        return tools | ({"chat_template_kwargs": own} if own else {})


def has_lone_surrogate(text: str) -> bool:
    """Whether the text cannot be encoded as UTF-8; JSON escapes can express a lone surrogate."""
    return any("\ud800" <= character <= "\udfff" for character in text)
