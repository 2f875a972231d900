"""One conversation to be answered: what is asked, what was answered, and the tokens of every turn.

Does not know who answers or where the result is written.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from .messages import BadRow, Message, messages_of, plain_text, questions, row_of, template_options


@dataclass(frozen=True)
class Sampling:
    """
    How answers are drawn. `temperatures` take turns, batch by batch (by conversation at an endpoint); 0 is greedy.
    Plain text (for targets without chat) is cut after `prompt_tokens` tokens and continued.
    """

    max_new_tokens: int = 512
    temperatures: tuple[float, ...] = (1.0,)
    top_p: float = 1.0
    seed: int = 0
    prompt_tokens: int = 32

    def temperature(self, number: int) -> float:
        """That of a batch, or of a conversation."""
        return self.temperatures[number % len(self.temperatures)]


@dataclass
class TurnTokens:
    """
    Consecutive turns as the very tokens that the target read and wrote.

    Attributes:
        input_ids: Tokens, (L,).
        loss_mask: 1 where the target wrote the token, (L,).
        num_messages: Messages of the conversation through the last of these turns.
    """

    input_ids: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    num_messages: int = 0


@dataclass
class Job:
    """
    One conversation that is being answered.

    Attributes:
        index: Its place in the data.
        messages: Those so far.
        asked: What is still to be answered, each entry by one answer: a question, or one with recorded calls of tools
            and their results.
        batch: Place of its batch in the data, whatever was answered before.
        text: Plain text to be continued, instead of messages: the first tokens of it, or all if `is_prompt`.
        options: The row's own for the chat template, tools included.
        tokens: One entry for all turns, or one for each run of turns between which the chat template rewrites earlier
            ones (as templates do that drop reasoning).
        text_only: Some answer came without its token ids.
        num_answers: Turns answered so far.
        num_kept: Messages through the last answer; a question behind it has none.
        problem: Why it could not be answered.
        can_retry: Another run may answer it (the endpoint failed, not the conversation).
        cut: Why it ends early, although what was answered is kept.
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
        What a sample asks.

        Raises:
            BadRow: nothing, or it is not a conversation or text.
        """
        row = row_of(sample)
        if isinstance(row.get("prompt"), str) and row.get("completion") is None:
            row = {name: row.get(name) for name in ("prompt", "tools", "chat_template_kwargs")}
        messages = messages_of(row)
        if messages is None:
            if row.get("text") is None:
                raise BadRow("Regeneration needs conversations or `text`; this sample is tokens.")
            return cls(index, [], [], batch, text=plain_text(row["text"], "`text`"))
        before, asked = questions(messages)
        if not asked:
            raise BadRow("It has no question to answer.")
        job = cls(index, before, asked, batch, options=template_options(row, template_kwargs))
        if has_lone_surrogate(json.dumps([job.messages, job.asked, job.options], ensure_ascii=False)):
            raise BadRow("It holds half of a surrogate pair, which is not text; correct or drop it.")
        return job

    def as_plain_text(self) -> None:
        """For a target without a chat template: one question is a text to be continued."""
        if len(self.asked) > 1 or len(self.asked[0]) > 1:
            raise BadRow(
                "It is a conversation of several turns and the tokenizer has no chat template; give single prompts."
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
        """The target's next turn (or the continued text), with the tokens it read and wrote where they are known."""
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
        """Ask no more: turns answered before are kept; without any, the conversation is not answered."""
        self.asked.clear()
        if self.num_answers:
            self.cut = reason
        else:
            self.problem = reason

    def records(self) -> list[dict]:
        """The lines of the output file, each a sample for training: one for each entry of `tokens`."""
        parts = [TurnTokens(num_messages=self.num_kept)] if self.text_only or not self.tokens else self.tokens
        lines = []
        for number, part in enumerate(parts, start=1):
            line: dict = {"id": self.index, "part": number, "parts": len(parts)}
            line |= {"messages": self.messages[: part.num_messages]} if self.text is None else {"text": self.text}
            line |= self.given()
            if part.input_ids:
                line |= {"input_ids": part.input_ids, "loss_mask": part.loss_mask}
            lines.append(line)
        return lines

    def given(self) -> dict:
        """`options` as rows and requests name them."""
        own = {name: value for name, value in self.options.items() if name != "tools"}
        tools = {"tools": self.options["tools"]} if "tools" in self.options else {}
        return tools | ({"chat_template_kwargs": own} if own else {})


def has_lone_surrogate(text: str) -> bool:
    """Whether UTF-8 cannot hold it; JSON may write half of a surrogate pair, files and tokenizers cannot."""
    return any("\ud800" <= character <= "\udfff" for character in text)
