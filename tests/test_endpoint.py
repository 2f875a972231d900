"""The target answers through an OpenAI-compatible endpoint, also one that misbehaves.

A server of these tests has a `reply`, from a request's body and the attempt (from 0) to what the connection carries:

    completion("yes")                              200 with {"choices": [{"message": {"content": "yes"}}]}
    http(b"<html>")                                200 with that body
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"   these bytes, then the connection closes
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_data import CHAT, FORGETFUL, word_tokenizer, words

from hf_eagle3.cli import main
from hf_eagle3.data import endpoint as module
from hf_eagle3.data.conversations import tokenise
from hf_eagle3.data.endpoint import Endpoint, Failed, Refused, read_answer
from hf_eagle3.data.jobs import Sampling
from hf_eagle3.data.loading import load, tokenised
from hf_eagle3.data.regenerate import finished_ids, regenerate


def http(body: bytes, status: int = 200, *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def completion(content, message=None, **choice) -> bytes:
    return http(json.dumps({"choices": [{"message": {"content": content} | (message or {})} | choice]}).encode())


def refusal(message: str, status: int = 400) -> bytes:
    return http(json.dumps({"error": {"message": message}}).encode(), status)


# Each breaks a promise of HTTP, of JSON or of the interface.
MISBEHAVIOUR = {
    "short body": completion("yes")[:-10],
    "short chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{",
    "bad status line": b"answer\r\n\r\n",
    "closed": b"",
    "endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
    "not gzip": http(b"abcd", 200, "Content-Encoding: gzip"),
    "cut json": http(b'{"choices": [{"mess'),
    "empty": http(b""),
    "html": http(b"<html>hello</html>"),
    "error": http(b'{"error": {"code": 502, "message": "no model"}}'),
    "error beside text": http(b'{"error": {"code": 502}, "choices": [{"message": {"content": "ye"}}]}'),
    "deep json": http(b"[" * 100_000),
    "bad utf-8": http(b'{"choices": [{"message": {"content": "\xff"}}]}'),
    "lone surrogate": http(rb'{"choices": [{"message": {"content": "yes \ud83d"}}]}'),
    "surrogate in reasoning": http(rb'{"choices": [{"message": {"content": "yes", "reasoning": "\ud83d"}}]}'),
    "number": completion(42),
    "image": completion([{"type": "image_url", "image_url": ""}]),
    "no choice": http(b'{"choices": []}'),
    "message is text": http(b'{"choices": [{"message": "yes"}]}'),
    "list": http(b"[]"),
    "null": http(b"null"),
    "aborted": completion("ye", finish_reason="abort"),
    "busy": http(b"", 429, "Retry-After: 0"),
    "unavailable": http(b"", 503),
    "unknown 5xx": http(b"", 529),
}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.bodies, self.lock = [], threading.Lock()
        self.running = self.most_running = 0

    def reply(self, body, attempt):
        """By default, how many messages it saw."""
        return completion(f"answer {len(body['messages'])}")


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            attempt = self.server.bodies.count(body)
            self.server.bodies.append(body)
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
        reply = self.server.reply(body, attempt)
        with self.server.lock:
            self.server.running -= 1
        self.wfile.write(reply)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0)
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def endpoint(server, **options) -> Endpoint:
    return Endpoint(server.url, "m", options.pop("sampling", Sampling()), **{"concurrency": 2, "retries": 1} | options)


def answers(path):
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return sorted(rows, key=lambda row: (row["id"], row["part"]))


def last(body) -> str:
    return body["messages"][-1]["content"]


def test_a_conversation_is_asked_turn_by_turn(tmp_path, server):
    path = tmp_path / "out.jsonl"
    chats = [{"messages": CHAT}, {"messages": CHAT[:1]}] * 4
    assert regenerate(chats, path, endpoint(server), batch_size=8) == 8
    assert [m["content"] for m in answers(path)[0]["messages"]] == ["why so", "answer 1", "so", "answer 3"]
    assert len(server.bodies) == 12
    assert server.most_running <= 2
    assert server.bodies[0]["max_tokens"] == 512


def test_temperatures_take_turns_by_conversation_and_no_noise_is_used_twice(tmp_path, server):
    """A server draws the same noise for the same seed."""
    chats = [{"messages": [{"role": "user", "content": f"first {i}"}, *CHAT[1:3]]} for i in range(4)]
    regenerate(chats, tmp_path / "out.jsonl", endpoint(server, sampling=Sampling(temperatures=(0.0, 1.0))), 8)
    asked = {(body["messages"][0]["content"], len(body["messages"])): body["temperature"] for body in server.bodies}
    assert asked == {(f"first {i}", turn): float(i % 2) for i in range(4) for turn in (1, 3)}
    assert len({body["seed"] for body in server.bodies}) == len(server.bodies) == 8


# Misbehaviour


@pytest.mark.parametrize("kind", MISBEHAVIOUR)
def test_what_fails_once_is_asked_again(tmp_path, server, kind):
    server.reply = lambda body, attempt: completion("yes") if attempt else MISBEHAVIOUR[kind]
    assert regenerate([{"prompt": "why"}], tmp_path / "out", endpoint(server), batch_size=1) == 1
    assert answers(tmp_path / "out")[0]["messages"][1]["content"] == "yes"


def test_what_fails_always_is_counted_and_the_others_go_on(tmp_path, server, caplog):
    """Every kind in one run; a later run asks those alone."""
    prompts = [{"prompt": prompt} for kind in MISBEHAVIOUR for prompt in (kind, f"good {kind}")]
    server.reply = lambda body, attempt: MISBEHAVIOUR.get(last(body), completion("yes"))
    path = tmp_path / "out.jsonl"
    assert regenerate(prompts, path, endpoint(server), batch_size=16) == len(MISBEHAVIOUR)
    assert finished_ids(path) == set(range(1, len(prompts), 2))
    assert f"{len(MISBEHAVIOUR)} conversations were not answered" in caplog.text
    assert "Row 1: " in caplog.text
    assert len(server.bodies) == 3 * len(MISBEHAVIOUR)
    server.reply = lambda body, attempt: completion("later")
    assert regenerate(prompts, path, endpoint(server), batch_size=16) == len(MISBEHAVIOUR)
    assert {last(body) for body in server.bodies[3 * len(MISBEHAVIOUR) :]} == MISBEHAVIOUR.keys()
    load(str(path))


def test_a_slow_answer_is_asked_again(tmp_path, server):
    def reply(body, attempt):
        if not attempt:
            time.sleep(1.5)
        return completion("yes")

    server.reply = reply
    assert regenerate([{"prompt": "why"}], tmp_path / "out", endpoint(server, timeout=0.2), batch_size=1) == 1
    data, seen = tmp_path / "prompts.jsonl", len(server.bodies)
    data.write_text('{"prompt": "so"}\n')
    command = ["prepare", "regenerate", "--data", str(data), "--target", "m", "--endpoint", server.url]
    for timeout, requests in (("1", 2), ("60", 1)):
        out = tmp_path / f"out{timeout}.jsonl"
        assert main([*command, "--output", str(out), "--timeout", timeout, "--seed", timeout]) == 0
        assert len(server.bodies) - seen == requests
        seen = len(server.bodies)


@pytest.mark.parametrize("kind", ["html", "closed", "cut json", "busy"])
def test_nothing_answered_at_all_is_an_exit_code(tmp_path, server, capsys, kind):
    server.reply = lambda body, attempt: MISBEHAVIOUR[kind]
    data, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    data.write_text('{"prompt": "why"}\n{"prompt": "so"}\n')
    command = ["prepare", "regenerate", "--data", str(data), "--output", str(out), "--target", "m"]
    assert main([*command, "--endpoint", server.url, "--retries", "1"]) == 2
    assert "None of 2 conversations was answered" in capsys.readouterr().err
    assert not out.exists()
    server.reply = lambda body, attempt: completion("yes") if last(body) == "so" else MISBEHAVIOUR[kind]
    assert main([*command, "--endpoint", server.url, "--retries", "1"]) == 0
    assert finished_ids(out) == {1}
    server.reply = lambda body, attempt: MISBEHAVIOUR[kind]  # also where an earlier run answered some
    assert main([*command, "--endpoint", server.url, "--retries", "1"]) == 2


def test_a_run_ends_where_one_after_the_other_fails(tmp_path, server, monkeypatch):
    monkeypatch.setattr(module, "MIN_PATIENCE", 4)
    server.reply = lambda body, attempt: completion("yes") if last(body) == "0" else MISBEHAVIOUR["unavailable"]
    prompts = [{"prompt": str(i)} for i in range(100)]
    with pytest.raises(OSError, match=r"consecutive conversations failed.*returned 503"):
        regenerate(prompts, tmp_path / "out", endpoint(server), batch_size=50)
    assert finished_ids(tmp_path / "out") == {0}  # what was answered before is kept
    assert len(server.bodies) < 20


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_is_asked_once(tmp_path, server, status):
    server.reply = lambda body, attempt: refusal("wrong", status)
    with pytest.raises(OSError, match=f"returned {status}: .*wrong"):
        regenerate([{"prompt": "why"}], tmp_path / "out", endpoint(server), batch_size=1)
    assert len(server.bodies) == 1


def test_one_conversation_that_is_refused_does_not_stop_the_others(tmp_path, server, caplog):
    server.reply = lambda body, attempt: refusal("bad word") if last(body) == "bad" else completion("yes")
    chats = [{"messages": CHAT[:1]}, {"prompt": "bad"}, {"prompt": "why"}, {"text": "be"}]
    assert regenerate(chats, tmp_path / "out", endpoint(server), batch_size=3) == 2
    assert finished_ids(tmp_path / "out") == {0, 2}
    assert "Row 2: " in caplog.text
    assert "bad word" in caplog.text
    assert "cannot continue plain `text`" in caplog.text
    assert sum(last(body) == "bad" for body in server.bodies) <= 2  # a refusal is no failure


def test_the_pause_doubles_and_is_what_the_server_asks_for(tmp_path, server, monkeypatch):
    pauses = []
    monkeypatch.setattr(module, "sleep_using_event", lambda stop: pauses.append)
    monkeypatch.setattr(module, "PAUSE", 0.5)
    busy = [http(b"", 429, f"Retry-After: {text}") for text in ("7", "Fri, 31 Dec 1999 23:59:59 GMT", "9999")]
    server.reply = lambda body, attempt: ([http(b"", 503)] * 2 + busy + [completion("yes")])[attempt]
    assert regenerate([{"prompt": "why"}], tmp_path / "out", endpoint(server, retries=5), batch_size=1) == 1
    assert 0.5 <= pauses[0] <= 1
    assert 1 <= pauses[1] <= 1.5
    assert pauses[2] == 7
    assert 4 <= pauses[3] <= 4.5
    assert pauses[4] == 120


def test_an_endpoint_that_is_not_there(tmp_path, server):
    server.server_close()
    with pytest.raises(OSError, match="cannot be reached"):
        regenerate([{"messages": CHAT}], tmp_path / "out", endpoint(server), batch_size=1)


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://a:b/v1", "ftp://a/v1", ""])
def test_an_address_that_is_none(url):
    with pytest.raises(ValueError, match="use an http"):
        Endpoint(url, "m", Sampling())


# What other servers call it


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("value", ["2 + 2", [{"type": "text", "text": "2 + 2"}]])
def test_reasoning_under_any_name_is_joined_to_the_text(name, value):
    body = completion("4", {"reasoning_content": None, name: value}).split(b"\r\n\r\n")[1]
    assert read_answer(body).text == "<think>\n2 + 2\n</think>\n\n4"


def test_the_same_reasoning_under_two_names_is_there_once():
    body = completion("4", {"reasoning": "2 + 2", "reasoning_content": "2 + 2"}).split(b"\r\n\r\n")[1]
    assert read_answer(body).text == "<think>\n2 + 2\n</think>\n\n4"


def test_content_in_parts():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "2 + 2"}]},
        {"type": "text", "text": "it is "},
        {"type": "output_text", "text": "4"},
    ]
    assert read_answer(completion(parts).split(b"\r\n\r\n")[1]).text == "<think>\n2 + 2\n</think>\n\nit is 4"


@pytest.mark.parametrize(
    ("content", "fields", "error", "message"),
    [
        (None, {}, Refused, "no text"),
        ("", {}, Refused, "no text"),
        ("ye", {"finish_reason": "content_filter"}, Refused, "content filter"),
        ("ye", {"finish_reason": "error"}, Failed, "aborted"),
    ],
)
def test_an_answer_that_is_none(content, fields, error, message):
    with pytest.raises(error, match=message):
        read_answer(completion(content, **fields).split(b"\r\n\r\n")[1])


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_token_ids": [1, 2], "choices": {"token_ids": [3, 4]}},
        {"choices": {"prompt_token_ids": [1, 2], "token_ids": [3, 4]}},
        {"choices": {"prompt_token_ids": [1, 2], "response_token_ids": [3, 4]}},
        {"choices": {"prompt_token_ids": [1, 2], "meta_info": {"output_ids": [3, 4]}}},
        {"sglext": {"prompt_token_ids": [1, 2], "completion_token_ids": [[3, 4]]}},
    ],
    ids=["vllm", "sglang", "sglang fork", "sglang meta_info", "sglext"],
)
def test_token_ids_under_any_name(fields):
    choice = {"message": {"content": "yes"}} | fields.pop("choices", {})
    answer = read_answer(json.dumps({"choices": [choice]} | fields).encode())
    assert (answer.prompt_ids, answer.answer_ids) == ([1, 2], [3, 4])


@pytest.mark.parametrize("value", [None, [], "1 2", [1, "2"], [True], [-1], {"0": 1}])
def test_token_ids_that_are_none(value):
    choice = {"message": {"content": "yes"}, "token_ids": value, "prompt_token_ids": value}
    answer = read_answer(json.dumps({"choices": [choice]}).encode())
    assert (answer.prompt_ids, answer.answer_ids) == (None, None)


# Tokens and the context


def test_every_turn_can_be_trained_on_where_the_server_gives_token_ids(tmp_path, server):
    tokenizer = word_tokenizer(FORGETFUL)

    def reply(body, attempt):
        assert body["return_token_ids"] is True
        prompt = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        said = "<think> yes <end>" if len(body["messages"]) == 1 else "<think> no <end>"
        return completion(
            said.split()[1],
            {"reasoning": "<think>"},
            prompt_token_ids=prompt,
            token_ids=tokenizer(said)["input_ids"],
        )

    server.reply = reply
    assert regenerate([{"messages": CHAT}], tmp_path / "out.jsonl", endpoint(server), batch_size=1) == 1
    first, second = answers(tmp_path / "out.jsonl")
    assert words(first["input_ids"]) == "<user> why so <end> <assistant> <think> yes <end>"
    assert first["loss_mask"] == [0] * 5 + [1] * 3
    assert words(second["input_ids"]).endswith("<assistant> <think> no <end>")
    assert sum(second["loss_mask"]) == 3
    assert len(tokenised(load(str(tmp_path / "out.jsonl")), tokenizer, max_length=64)) == 2


def test_a_server_that_refuses_to_give_token_ids_is_asked_without(tmp_path, server, caplog):
    server.reply = lambda body, attempt: (
        refusal("unknown argument") if "return_token_ids" in body else completion("yes")
    )
    chats = [{"messages": CHAT}] * 3
    assert regenerate(chats, tmp_path / "out", endpoint(server, concurrency=1), batch_size=3) == 3
    assert sum("return_token_ids" in body for body in server.bodies) == 1
    assert caplog.text.count("returns no token ids") == 1


def test_a_refusal_of_one_conversation_does_not_end_the_token_ids(tmp_path, server):
    def reply(body, attempt):
        return refusal("bad word") if last(body) == "bad" else completion("yes", prompt_token_ids=[1], token_ids=[2])

    server.reply = reply
    prompts = [{"prompt": "bad"}, {"prompt": "why"}, {"prompt": "bad"}, {"prompt": "so"}]
    regenerate(prompts, tmp_path / "out", endpoint(server, concurrency=1), batch_size=4)
    assert [row["input_ids"] for row in answers(tmp_path / "out")] == [[1, 2], [1, 2]]
    # Asked without token ids as well, until an answer has shown that the server takes the wish for them
    assert ["return_token_ids" in body for body in server.bodies] == [True, False, True, True, True]


def test_a_request_past_the_context_gets_what_is_left_of_it(tmp_path, server, caplog):
    """The first question has room for less than it asks for, whatever stands before or behind it for none."""
    full = refusal("This model's maximum context length is 16 tokens. However, you requested 20 tokens.")

    def reply(body, attempt):
        if len(body["messages"]) > 1 or "max_tokens" in body:
            return full
        ended = last(body) == "so"
        return completion("yes", finish_reason="stop" if ended else "length", prompt_token_ids=[1], token_ids=[2])

    server.reply = reply
    system = {"role": "system", "content": "be"}
    chats = [CHAT, CHAT[2:3], [system, *CHAT], [CHAT[2], CHAT[1], CHAT[0]], CHAT[:1]]
    samples = [{"messages": chat} for chat in chats]
    assert regenerate(samples, tmp_path / "out", endpoint(server), batch_size=5) == 4
    rows = answers(tmp_path / "out")
    assert [len(row["messages"]) for row in rows] == [2, 2, 2, 2]
    assert all("input_ids" in row for row in rows)
    assert "3 conversations end early: the served model's context is full" in caplog.text
    assert "Row 3: " in caplog.text  # not one answer


# Calls of tools that a server gives beside the text

CALL = {"id": "a", "type": "function", "function": {"name": "kind", "arguments": '{"how": "so"}'}}
TOOLS = [{"type": "function", "function": {"name": "kind", "description": "kind so"}}]
WITH_CALLS = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% for c in m.tool_calls or [] %}{{ c.function.name }} "
    "{{ c.function.arguments.how }} {% endfor %}<end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def test_a_call_of_a_tool_is_an_answer_and_ends_the_conversation(tmp_path, server, caplog):
    server.reply = lambda body, attempt: completion(None, {"tool_calls": [CALL | {"index": None}]})
    path = tmp_path / "out.jsonl"
    chats = [{"messages": CHAT, "tools": TOOLS}, {"messages": CHAT[:1], "tools": TOOLS}]
    assert regenerate(chats, path, endpoint(server), batch_size=2) == 2
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    answered = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert [row["messages"] for row in rows] == [answered, answered]
    assert all(row["tools"] == TOOLS for row in rows)
    assert "1 conversations end early: an answer calls tools, whose results are unknown" in caplog.text
    sample = tokenise(rows[0], word_tokenizer(WITH_CALLS))
    learnt = [token for token, mask in zip(sample.input_ids, sample.loss_mask, strict=True) if mask]
    assert words(learnt) == "kind so <end>"


def test_reasoning_and_text_stand_beside_calls():
    message = {"content": "yes", "reasoning": "so", "tool_calls": [CALL]}
    answer = read_answer(completion(None, message).partition(b"\r\n\r\n")[2])
    assert (answer.text, answer.tool_calls) == ("<think>\nso\n</think>\n\nyes", [CALL])


@pytest.mark.parametrize(
    ("calls", "error", "message"),
    [
        ("look", Failed, "`tool_calls` of type str"),
        (["look"], Failed, "without a function name"),
        ([{"function": {"arguments": "{}"}}], Failed, "without a function name"),
        ([{"function": {"name": "look", "arguments": '{"how": "s'}}], Refused, "not a JSON object .cut off"),
        ([{"function": {"name": "look", "arguments": '"\\ud83d"'}}], Refused, "not a JSON object"),
        ([{"function": {"name": "look", "arguments": {"how": "\ud83d"}}}], Failed, "lone surrogate"),
    ],
)
def test_calls_that_are_none_are_refused(calls, error, message):
    with pytest.raises(error, match=message):
        read_answer(json.dumps({"choices": [{"message": {"content": None, "tool_calls": calls}}]}).encode())
