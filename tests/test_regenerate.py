"""The target answers the prompts: in-process and through an endpoint, resumable, exact tokens kept."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from models import tiny_draft, tiny_target
from test_data import CHAT, word_tokenizer

from hf_eagle3.data import regenerate as module
from hf_eagle3.data.regenerate import Endpoint, InProcess, Job, Sampling, finished_ids, regenerate


PROMPTS = [{"messages": CHAT[:1]}, {"messages": CHAT}, {"text": "why so be kind"}, {"messages": CHAT[:1]}]


def target():
    model = tiny_target()
    model.generation_config.eos_token_id = 4
    return model


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def in_process(**options) -> InProcess:
    draft = options.pop("draft", None)
    sampling = Sampling(**{"max_new_tokens": 6, "temperatures": (0.0,), "prompt_tokens": 2} | options)
    return InProcess(target(), word_tokenizer(), sampling, draft)


def test_every_turn_is_answered_by_the_target(tmp_path):
    path = tmp_path / "out.jsonl"
    answer = in_process()
    assert regenerate(PROMPTS, path, answer, batch_size=3) == 4
    rows = sorted(answers(path), key=lambda row: row["id"])
    assert [m["role"] for m in rows[1]["messages"]] == ["user", "assistant", "user", "assistant"]
    assert [m["content"] for m in rows[1]["messages"][::2]] == ["why so", "so"]
    # One turn: the very tokens, as generate gives them for this prompt alone
    prompt = rows[0]["input_ids"][: rows[0]["loss_mask"].index(1)]
    alone = answer.target.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0].tolist()
    assert rows[0]["input_ids"] == alone
    assert rows[2]["loss_mask"][:3] == [0, 0, 1]


def test_a_draft_changes_nothing(tmp_path):
    with_draft = in_process(temperatures=(1.0,), draft=tiny_draft(tiny_target()))
    for name, answer in (("plain", in_process(temperatures=(1.0,))), ("draft", with_draft)):
        regenerate(PROMPTS, tmp_path / name, answer, batch_size=2)
    assert (tmp_path / "plain").read_text() == (tmp_path / "draft").read_text()


def test_an_interrupted_run_goes_on_with_the_same_text(tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    answer = in_process(temperatures=(1.0, 0.0))
    regenerate(PROMPTS, whole, answer, batch_size=2)
    lines = whole.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:2]) + lines[2][:15])
    assert regenerate(PROMPTS, cut, answer, batch_size=2) == 2
    assert answers(cut) == answers(whole)


def test_another_file_is_not_overwritten(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nmore\n")
    with pytest.raises(ValueError, match="not a file of regenerated"):
        finished_ids(path)
    assert path.read_text() == "my notes\nmore\n"


def test_tokens_cannot_be_regenerated():
    with pytest.raises(ValueError, match="conversations or `text`"):
        Job.from_sample(0, {"input_ids": [1, 2]})


@pytest.fixture
def server(monkeypatch):
    """An endpoint that refuses every first request and answers with how many turns it saw."""
    monkeypatch.setattr(module, "PAUSE", 0)
    seen, running, lock = [], [0, 0], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append(body)
                running[0] += 1
                running[1] = max(running)
                first = sum(b == body for b in seen) == 1
            too_long = body["messages"][-1]["content"] == "too long"
            status = 404 if body["model"] == "wrong" else 400 if too_long else 503 if first else 200
            content = f"answer {len(body['messages'])}"
            answer = {"choices": [{"message": {"content": content}}]} if body["model"] != "odd" else {"choices": []}
            with lock:
                running[0] -= 1
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}/v1", seen, running
    http.shutdown()


def test_an_endpoint_is_asked_turn_by_turn_and_again_after_a_refusal(tmp_path, server):
    url, seen, running = server
    path = tmp_path / "out.jsonl"
    chats = [{"messages": CHAT}, {"messages": CHAT[:1]}] * 4
    assert regenerate(chats, path, Endpoint(url, "m", Sampling(), concurrency=2), batch_size=8) == 8
    rows = sorted(answers(path), key=lambda row: row["id"])
    assert [m["content"] for m in rows[0]["messages"]] == ["why so", "answer 1", "so", "answer 3"]
    assert len(seen) == 2 * 12
    assert running[1] <= 2
    assert seen[0]["max_tokens"] == 512


@pytest.mark.parametrize(("name", "message"), [("wrong", "answered 404"), ("odd", "did not answer as a chat")])
def test_an_endpoint_that_refuses_for_good_is_an_error(tmp_path, server, name, message):
    with pytest.raises(OSError, match=message):
        regenerate([{"messages": CHAT}], tmp_path / "out", Endpoint(server[0], name, Sampling()), batch_size=1)


def test_one_conversation_that_is_refused_does_not_stop_the_others(tmp_path, server, caplog):
    path = tmp_path / "out.jsonl"
    chats = [{"messages": CHAT[:1]}, {"prompt": "too long"}, {"prompt": "why"}]
    assert regenerate(chats, path, Endpoint(server[0], "m", Sampling(), concurrency=2), batch_size=3) == 2
    assert sorted(row["id"] for row in answers(path)) == [0, 2]
    assert "1 conversations were not answered. Row 2: http" in caplog.text


@pytest.mark.parametrize("message", [{"content": None}, {"content": ""}])
def test_an_answer_without_text_is_refused(message):
    with pytest.raises(module.Refused, match="no text"):
        module.said({"choices": [{"message": message}]})


def test_reasoning_that_a_server_parts_off_is_joined_again():
    message = {"content": "4", "reasoning_content": "2 + 2"}
    assert module.said({"choices": [{"message": message}]}) == "<think>\n2 + 2\n</think>\n\n4"


def test_a_line_cut_inside_a_character_or_before_its_end_is_done_again(tmp_path):
    whole = json.dumps({"id": 1, "messages": "é"}, ensure_ascii=False).encode()
    for rest in (whole[:-3], whole):
        (tmp_path / "out").write_bytes(b'{"id": 0}\n' + rest)
        assert finished_ids(tmp_path / "out") == {0}
        assert (tmp_path / "out").read_bytes() == b'{"id": 0}\n'


def test_one_answer_after_a_system_message_keeps_its_tokens(tmp_path):
    path = tmp_path / "out.jsonl"
    regenerate([{"messages": [{"role": "system", "content": "be kind"}, CHAT[0]]}], path, in_process(), batch_size=1)
    assert "input_ids" in answers(path)[0]


def test_an_endpoint_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0)
    endpoint = Endpoint("http://127.0.0.1:9", "m", Sampling(), retries=1)
    with pytest.raises(OSError, match="cannot be reached"):
        regenerate([{"messages": CHAT}], tmp_path / "out", endpoint, batch_size=1)
    with pytest.raises(ValueError, match="http"):
        Endpoint("localhost:8000", "m", Sampling())
