"""`hf-eagle3 serve`: transformers' own server with a draft, asked by OpenAI clients; the text stays plain generate's.

eight clients at once  ->  eight answers of plain generate, eight lines "... tokens/s, tau ..."
"""

import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from hf_eagle3 import embedded
from hf_eagle3.cli import main


ROOT = Path(__file__).parents[1]
NUM_CLIENTS, NUM_TOKENS = 8, 24
TARGET = embedded.TARGET.as_posix()
LINE = re.compile(r"hf-eagle3: (\d+) tokens in [\d.]+ s, [\d.]+ tokens/s, tau ([\d.]+) in \d+ cycles")


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def is_up(address: str) -> bool:
    try:
        with urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, file of its log) of a server of its own process."""
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name)
    log, port = tmp_path_factory.mktemp("server") / "log", free_port()
    words = ["serve", "--target", TARGET, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    words += ["--tree", "static", "--", "--enable-cors"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "hf_eagle3.cli", *words], stdout=out, stderr=subprocess.STDOUT, env=environment
        )
    try:
        address, started = f"http://127.0.0.1:{port}", time.monotonic()
        while not is_up(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() - started < 300, log.read_text()
            time.sleep(0.2)
        yield address, log
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def expected():
    """(prompt, plain generate's text) of every client."""
    target, _, tokenizer = embedded.load_pair()
    rows = []
    for row in embedded.prompts()[:NUM_CLIENTS]:
        messages = [{"role": "user", "content": row["prompt"]}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        inputs.pop("token_type_ids", None)
        out = target.generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)
        text = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        rows.append((row["prompt"], text))
    assert len(set(rows)) == NUM_CLIENTS
    return rows


def client(address: str):
    from openai import OpenAI

    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300)


def asked(prompt: str) -> dict:
    messages = [{"role": "user", "content": prompt}]
    return {"model": TARGET, "messages": messages, "max_tokens": NUM_TOKENS, "temperature": 0}


def lines(log: Path) -> list[tuple[int, float]]:
    """(tokens, tau) of each logged request."""
    return [(int(tokens), float(tau)) for tokens, tau in LINE.findall(log.read_text())]


def test_eight_clients_at_once_get_plain_text(server, expected):
    address, log = server
    before = len(lines(log))

    def answer(prompt: str) -> tuple[str, int]:
        out = client(address).chat.completions.create(**asked(prompt))
        return out.choices[0].message.content, out.usage.completion_tokens

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        answers = list(pool.map(answer, [prompt for prompt, _ in expected]))
    assert [text for text, _ in answers] == [text for _, text in expected]
    logged = lines(log)[before:]
    assert sorted(tokens for tokens, _ in logged) == sorted(tokens for _, tokens in answers)
    assert sum(tau for _, tau in logged) / NUM_CLIENTS > 1.5


def test_a_client_streams(server, expected):
    address, log = server
    before = len(lines(log))
    prompt, text = expected[0]
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client(address).chat.completions.create(**asked(prompt), stream=True)
    ]
    assert "".join(pieces) == text
    assert sum(bool(piece) for piece in pieces) > 3
    deadline = time.monotonic() + 30  # the line follows the last chunk
    while len(lines(log)) == before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(lines(log)) == before + 1


def test_continuous_batching_is_refused(capsys):
    assert main(["serve", "--target", TARGET, "--", "--continuous-batching"]) == 2
    assert "continuous batching runs the target without `generate`" in capsys.readouterr().err


def test_an_option_that_the_server_lacks_is_a_usage_error(capsys):
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--target", TARGET, "--device", "cpu", "--", "--penguin"])
    assert ended.value.code == 2
    assert "penguin" in capsys.readouterr().err
