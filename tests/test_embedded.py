"""The pair that ships: real enough to measure on, small enough to ship, and the demo over it."""

import json

import pytest
import torch

from hf_eagle3 import embedded, record
from hf_eagle3.cli import main
from hf_eagle3.data.conversations import marks_generation, tokenise
from hf_eagle3.embedded import text
from hf_eagle3.embedded.held_out import PROMPTS_PER_DOMAIN, REPEATED, MemorisationCheck, write_held_out


LARGEST = 32 * 2**20


@pytest.fixture(scope="module")
def pair():
    return embedded.load_pair()


def answer(pair, prompt: str, new_tokens: int = 64, **options):
    target, _, tokenizer = pair
    messages = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    torch.manual_seed(0)
    return target.generate(**inputs, max_new_tokens=new_tokens, **options)


def test_it_is_deep_thin_and_small(pair):
    config = pair[0].config
    assert config.num_hidden_layers >= 24
    assert config.hidden_size <= 256
    files = [f for folder in (embedded.TARGET, embedded.DRAFT) for f in folder.iterdir()]
    assert sum(f.stat().st_size for f in files) < LARGEST


def test_every_domain_has_held_out_prompts():
    assert {row["domain"] for row in embedded.prompts()} == set(text.SOURCES)
    assert len(embedded.prompts("math")) == PROMPTS_PER_DOMAIN


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "top_k": 0}], ids=["greedy", "sampled"])
def test_same_text_in_far_fewer_passes(pair, options):
    """The figures of the card are higher; these bounds only say that the draft is a trained one."""
    fast = pair[1].with_tree("static", num_draft_tokens=24, tree_depth=6, tree_top_k=6)
    with record() as stats:
        for row in embedded.prompts()[:6]:
            plain = answer(pair, row["prompt"], **options)
            assert torch.equal(plain, answer(pair, row["prompt"], assistant_model=fast, **options))
    assert stats.acceptance_length > (2.5 if not options["do_sample"] else 1.8)


def test_the_text_is_not_trivial(pair):
    ids = answer(pair, embedded.prompts()[0]["prompt"], do_sample=True, top_k=0)
    with torch.no_grad():
        log_p = pair[0](ids).logits[0].log_softmax(-1)
    assert -(log_p.exp() * log_p).sum(-1).mean() > 0.8


def test_the_template_marks_what_the_assistant_says(pair):
    tokenizer = pair[2]
    assert marks_generation(tokenizer)
    messages = [{"role": "user", "content": "Two and 2?"}, {"role": "assistant", "content": "4\nfour"}]
    out = tokenise({"messages": messages}, tokenizer)
    marked = [token for token, mark in zip(out.input_ids, out.loss_mask, strict=True) if mark]
    assert tokenizer.decode(marked) == "4\nfour<|end|>"
    assert tokenizer.decode(out.input_ids) == "<|user|>Two and 2?<|end|><|assistant|>4\nfour<|end|>"


def test_demo_prints_text_figures_and_identity(capsys):
    assert main(["demo", "--num-prompts", "1", "--max-new-tokens", "24", "--color", "always"]) == 0
    out = capsys.readouterr().out
    for words in ("tokens/s", "speedup", "acceptance length", "yes, token for token", "\033[32m"):
        assert words in out


def test_demo_takes_prompts_trees_and_sampling(capsys):
    arguments = ["--prompt", "What is 2 + 2?", "--tree", "chain", "--tree-depth", "3", "--temperature", "0.8"]
    assert main(["demo", *arguments, "--max-new-tokens", "16"]) == 0
    out = capsys.readouterr().out
    assert "> What is 2 + 2?" in out
    assert "3 nodes, 3 levels" in out
    assert "\033[" not in out


def write_sources(folder, answers: list[str], code: str = "[]", roleplay: str = "[]"):
    rows = [json.dumps({"question": f"q{i}", "answer": answer}) + "\n" for i, answer in enumerate(answers)]
    (folder / "gsm8k_train.jsonl").write_text("".join(rows))
    (folder / "gpteacher_codegen.json").write_text(code)
    (folder / "gpteacher_roleplay.json").write_text(roleplay)


def test_held_out_conversations_are_not_trained_on(tmp_path):
    code = '[{"instruction": "i", "input": "x", "response": "r"}]'
    write_sources(tmp_path, [f"<<1+1=2>>a{i}" for i in range(100)], code)
    kept, trained = (list(text.conversations(tmp_path, held_out)) for held_out in (True, False))
    assert [m[0]["content"] for _, m in kept] == ["q0", "q40", "q80", "i\nx"]
    assert len(trained) == 97
    assert trained[0][1][1]["content"] == "a1"


def test_prompts_whose_answers_repeat_training_text_do_not_ship(pair, tmp_path):
    target, _, tokenizer = pair
    ids = answer(pair, "q0", new_tokens=REPEATED, do_sample=False)[0]
    said = tokenizer.decode(ids, skip_special_tokens=True).split("q0", 1)[1]
    many = [{"instruction": f"p{i}", "input": "", "response": "r"} for i in range(40 * PROMPTS_PER_DOMAIN)]
    answers = ["unlike anything"] * (40 * PROMPTS_PER_DOMAIN + 1)
    write_sources(tmp_path, answers, json.dumps(many), json.dumps(many))
    write_held_out(tmp_path, tmp_path / "all.jsonl", lambda prompt: False)
    assert '"q0"' in (tmp_path / "all.jsonl").read_text()
    answers[1] = "before " + said + " after"
    write_sources(tmp_path, answers, json.dumps(many), json.dumps(many))
    repetition = MemorisationCheck(target, tokenizer, tmp_path)
    assert repetition("q0")
    assert not repetition("Tell me of the sea.")
    write_held_out(tmp_path, tmp_path / "kept.jsonl", lambda prompt: prompt == "q0")
    assert [json.loads(row)["prompt"] for row in (tmp_path / "kept.jsonl").read_text().splitlines()][::3][:2] == [
        "q40",
        "q80",
    ]
