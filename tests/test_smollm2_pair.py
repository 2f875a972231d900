"""The real pair, nightly: the same text in float32 for every kind of prompt, and the acceptance length of its card.

Its target is fetched once (Hub or PyPI), or is in the folder that `HF_EAGLE3_SMOLLM2` names.
"""

import re

import pytest
import torch
from test_generate import assert_same
from transformers import set_seed

from hf_eagle3 import smollm2
from hf_eagle3.cli.inputs import encode
from hf_eagle3.generation.stats import record


pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]
SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 0}
DOMAINS = ("math", "code", "chat", "question", "summary")


@pytest.fixture(scope="module")
def pair():
    pytest.importorskip("gguf")
    return smollm2.load_pair()


@pytest.mark.parametrize("options", [{"do_sample": False}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("domain", DOMAINS)
def test_text_is_identical(pair, domain, batch_size, options):
    target, draft, tokenizer = pair
    chats = [[{"role": "user", "content": row["prompt"]}] for row in smollm2.prompts(domain)]
    tokenizer.padding_side = "left"
    for start in range(0, 4, batch_size):
        inputs = tokenizer.apply_chat_template(
            chats[start : start + batch_size],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        )
        stats = assert_same(target, draft, dict(inputs), max_new_tokens=64, **options)
        assert stats.acceptance_length > 1


def test_acceptance_is_that_of_the_card(pair):
    target, draft, tokenizer = pair
    view = draft.with_tree("static", num_draft_tokens=24, tree_depth=6, tree_top_k=6)
    with record() as stats:
        for row in smollm2.prompts():
            set_seed(0)
            inputs = encode(tokenizer, row["prompt"], False, torch.device("cpu"))
            target.generate(**inputs, assistant_model=view, do_sample=False, max_new_tokens=64)
    card = (smollm2.FOLDER / "README.md").read_text(encoding="utf-8")
    stated = float(re.search(r"nightly test measures: tau (\d\.\d+)", card)[1])
    assert stats.acceptance_length == pytest.approx(stated, rel=0.02)
