"""Validated chat messages from samples of every common format. Does not know tokenizers or files.

A sample is one row of a dataset, or the object on one line of a file:

    {"messages": [{"role", "content"}, ...]}                    OpenAI, Hub
    {"conversations": [{"from": "human" | "gpt", "value"}]}     ShareGPT
    {"prompt", "completion"}                                    strings, or lists of messages
    {"prompt"}                                                  a string, a list of messages, or one string per turn
    {"turns": ["...", "..."]}                                   the user's turns
    {"text"}, {"input_ids", ...}                                no messages: see `conversations`

Each may also have `tools` (JSON schemas, as a list or as JSON text) and `chat_template_kwargs` (an object), as in TRL.
"""

import json
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any


logger = logging.getLogger(__name__)
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
FORMATS = "`messages`, `conversations`, `prompt` (with `completion` or alone), `turns`, `text`, or `input_ids`"
# Three names for reasoning: Qwen and most templates; vLLM's responses; gpt-oss. Only the first is written.
REASONING = ("reasoning_content", "reasoning", "thinking")
TOOL_KEYS = ("tool_calls", "tool_call_id", "name")
# Columns for files whose rows have no common schema: the row as JSON text, or why its line is unreadable.
JSON_ROW, BAD_ROW = "_row_as_json", "_why_unreadable"
MAX_EXAMPLES = 5  # rows that a report lists for each kind of problem
Message = dict[str, Any]


class BadRow(ValueError):
    """What is wrong with one sample. Readers of datasets skip the sample and report it."""


def row_of(sample: Mapping) -> Mapping:
    """The sample with its columns, decoded if it is stored as JSON text."""
    if sample.get(BAD_ROW) is not None:
        raise BadRow(sample[BAD_ROW])
    return json.loads(sample[JSON_ROW]) if set(sample) == {JSON_ROW, BAD_ROW} else sample


def messages_of(sample: Mapping) -> list[Message] | None:
    """
    The sample as chat messages, without answers before the first question; `None` for plain text and token ids.

    Raises:
        BadRow: no known column, an unknown role, or content that is not text.
    """
    row = row_of(sample)
    if row.get("input_ids") is not None:  # take precedence: they are exactly what was generated
        return None
    if row.get("messages") is not None:
        return from_the_first_question(row["messages"], "messages")
    if row.get("conversations") is not None:
        return from_the_first_question(row["conversations"], "conversations")
    prompt, completion = row.get("prompt"), row.get("completion")
    if prompt is not None and completion is not None:
        answers = [completion] if isinstance(completion, str) else completion
        return from_the_first_question(
            [*turns(prompt, "prompt"), *turns(answers, "completion", "assistant")], "prompt"
        )
    if row.get("text") is not None:
        return None
    for name in ("prompt", "turns"):
        if row.get(name) is not None:
            return from_the_first_question(turns(row[name], name), name)
    raise BadRow(f"A sample has the columns {sorted(map(str, row))}; it needs one of {FORMATS}.")


def turns(value, column: str, role: str = "user") -> list:
    """Messages of a column that may also hold a string or a list of strings, which become messages of `role`."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f"`{column}` is {short_repr(value)}; expected a string or a list of messages.")
    return [{"role": role, "content": turn} if isinstance(turn, str) else turn for turn in value]


def from_the_first_question(turns, column: str) -> list[Message]:
    """Validated messages, without answers before the first question (chats may start in the middle)."""
    if not isinstance(turns, list):
        raise BadRow(f"`{column}` is {short_repr(turns)}; expected a list of messages.")
    messages = [message_of(turn, f"`{column}`[{i}]", column == "conversations") for i, turn in enumerate(turns)]
    start = next((i for i, message in enumerate(messages) if message["role"] != "assistant"), len(messages))
    if start == len(messages):
        raise BadRow(f"`{column}` contains no question ({len(messages)} messages).")
    return messages[start:]


def message_of(turn, place: str, is_sharegpt: bool) -> Message:
    """One message: `role`, `content` as plain text, and its other fields that are not `None`."""
    if not isinstance(turn, Mapping):
        raise BadRow(f"{place} is {short_repr(turn)}; expected an object with a role and text.")
    turn = without_none(turn)
    speaker = turn.get("from", turn.get("role")) if is_sharegpt else turn.get("role")
    if not isinstance(speaker, str) or not speaker:
        raise BadRow(f"{place} has no `{'from' if is_sharegpt else 'role'}` (its keys: {', '.join(turn)}).")
    if is_sharegpt:
        if speaker not in SHAREGPT_ROLES:
            raise BadRow(f"{place} has the role {speaker!r}; known roles: {', '.join(SHAREGPT_ROLES)}.")
        kept = {name: turn[name] for name in (*REASONING, *TOOL_KEYS) if name in turn}
        turn = {"role": SHAREGPT_ROLES[speaker], "content": turn.get("value", turn.get("content"))} | kept
    message = dict(turn) | {"content": plain_text(turn.get("content"), place)}
    thoughts = [message.pop(name) for name in REASONING if isinstance(message.get(name), str)]
    return message | ({REASONING[0]: plain_text(max(thoughts, key=bool), place)} if thoughts else {})


def plain_text(content, place: str = "A message") -> str:
    """
    Message content as a string; text parts are joined.

    Raises:
        BadRow: content that is not text, or text that is not valid Unicode.
    """
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        kinds = sorted({str(part.get("type")) for part in content} - {"text"})
        if kinds:
            raise BadRow(
                f"{place} has content parts that are not text ({', '.join(kinds)}); drafts are trained on text only."
            )
        content = "".join(plain_text(part.get("text"), place) for part in content)
    if not isinstance(content, str):
        raise BadRow(f"{place} has the content {short_repr(content)}; expected text.")
    if not content.isascii() and any("\ud800" <= letter <= "\udfff" for letter in content):
        raise BadRow(f"{place} contains a lone surrogate, which is not valid Unicode.")
    return content


def template_options(sample: Mapping, template_kwargs: Mapping | None = None) -> dict:
    """
    Extra arguments of the chat template: the sample's `tools`, and `template_kwargs` updated with the sample's own
    `chat_template_kwargs`.

    Raises:
        BadRow: `chat_template_kwargs` is not an object.
    """
    row = row_of(sample)
    own = without_none(decoded(row.get("chat_template_kwargs")) or {})
    if not isinstance(own, Mapping):
        raise BadRow(f"`chat_template_kwargs` is {short_repr(own)}; expected an object.")
    options = {**(template_kwargs or {}), **own}
    if tools := tools_of(row):
        options["tools"] = tools
    return options


def tools_of(row: Mapping) -> list[dict]:
    """The sample's tools; empty, with a warning, if `tools` holds no JSON schemas (names only, for instance)."""
    tools = decoded(row.get("tools"))
    tools = [tools] if isinstance(tools, Mapping) else tools
    if not tools:
        return []
    tools = [decoded(tool) for tool in tools] if isinstance(tools, list) else []
    if not tools or not all(isinstance(tool, Mapping) for tool in tools):
        warn_once("`tools` contains no JSON schemas and is not passed to the chat template.")
        return []
    return [dict(without_none(tool)) for tool in tools]


@cache
def warn_once(message: str) -> None:
    """One warning per process. (Importing transformers' `warning_once` would slow down `--help`.)"""
    logger.warning(message)


def questions(messages: list[Message]) -> tuple[list[Message], list[list[Message]]]:
    """
    (messages before the first question, messages before each answer to generate).

    Recorded answers are dropped. A recorded tool call is kept if results follow it: the question, the call and its
    results then precede one answer.
    """
    before = [message for message in messages[:1] if message["role"] in ("system", "developer")]
    asked: list[list[Message]] = []
    is_open = False  # the last question has no answer yet
    for i, message in enumerate(messages):
        is_call = message["role"] == "assistant" and i + 1 < len(messages) and messages[i + 1]["role"] == "tool"
        if message["role"] == "user" and message["content"]:
            asked.append([message])
            is_open = True
        elif is_open and (is_call or message["role"] == "tool"):
            asked[-1].append(message)
        elif message["role"] == "assistant":
            is_open = False
    return before, asked


def for_template(messages: list[Message]) -> list[Message]:
    """
    Messages as chat templates expect them: reasoning under each of its names, tool-call arguments as objects (OpenAI's
    are JSON text, which `tojson` would encode twice; servers decode them as well).
    """
    out = []
    for message in messages:
        if REASONING[0] in message:
            message = message | dict.fromkeys(REASONING, message[REASONING[0]])
        if isinstance(message.get("tool_calls"), list):
            message = message | {"tool_calls": [with_arguments(call, decoded) for call in message["tool_calls"]]}
        out.append(message)
    return out


def for_endpoint(messages: list[Message]) -> list[Message]:
    """Messages as the OpenAI API expects them: tool-call arguments as JSON text."""

    def encoded(value):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return [
        message | {"tool_calls": [with_arguments(call, encoded) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else message
        for message in messages
    ]


def with_arguments(call, change):
    """A tool call, in OpenAI's nested form or flat, with `change` applied to its `arguments`."""
    if not isinstance(call, Mapping):
        raise BadRow(f"`tool_calls` contains {short_repr(call)}; expected objects with a `function`.")
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": with_arguments(call["function"], change)}
    return {**call, "arguments": change(call["arguments"])} if "arguments" in call else dict(call)


def decoded(value):
    """The object or list that a JSON text encodes; any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if isinstance(found, (dict, list)) else value


def without_none(value):
    """`value` without `None` entries, which tables fill in for keys that only other rows have."""
    if isinstance(value, Mapping):
        return {name: without_none(inner) for name, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, list) else value


def short_repr(value) -> str:
    """`repr` of a value for an error message, truncated to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def row_examples(examples: list[tuple[int, str]], count: int, what: str = "Row") -> str:
    """The first of `count` rows by number, each with its problem unless all have the same."""
    more = f", and {count - len(examples)} more" if count > len(examples) else ""
    problems = {problem for _, problem in examples}
    if len(problems) > 1:
        return "; ".join(f"{what} {number}: {problem}" for number, problem in examples) + more
    numbers = ", ".join(str(number) for number, _ in examples)
    reason = "".join(f": {problem}" for problem in problems if problem)
    return f"{what}{'s' if count > 1 else ''} {numbers}{more}{reason}"
