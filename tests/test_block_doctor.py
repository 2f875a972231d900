"""`doctor` on block drafters: what a block accepts at every position of a plain answer, and which repairs are tried.

answer: the cat sat on a mat     anchor "cat", features of "the"  ->  sat on a: 3 accepted of 3
"""

import json

import pytest
import torch
from models import left_padded, tiny_target
from test_block import BLOCK, KINDS, MASK, block_draft

from hf_eagle3 import BlockDraftModel, embedded
from hf_eagle3.cli import main
from hf_eagle3.doctor.measure import LEAST_LOG, Evidence, plain_answers
from hf_eagle3.doctor.repairs import repairs_for
from hf_eagle3.target.target import Target


DEPTH = 3


def evidence_of(target) -> Evidence:
    prompts = [{name: value[:, 4 - n :] for name, value in left_padded([4]).items()} for n in (4, 3)]
    return Evidence(target, plain_answers(target, prompts, 14), DEPTH)


@pytest.mark.parametrize("kind", KINDS)
def test_every_position_equals_the_block_drafted_there(kind):
    target = tiny_target()
    draft = block_draft(target, **KINDS[kind])
    evidence, reader = evidence_of(target), Target(target, draft.config)
    measured = evidence.measure(draft)
    length = evidence.ids.shape[1]
    assert len(measured.starts) > 15
    for place, start in enumerate(measured.starts):
        row, index = divmod(start, length)
        tokens = evidence.ids[row : row + 1]
        features, _ = reader.read(tokens[:, : index + 1], torch.ones_like(tokens[:, : index + 1]))
        block = torch.tensor([[int(tokens[0, index + 1]), *[MASK] * (BLOCK - 1)]])
        with torch.no_grad():
            logits = reader.head(draft.predictions(draft(reader.embedding_rows(block), features)))[0, :DEPTH].float()
        wanted = tokens[0, index + 2 : index + 2 + DEPTH]
        expected = logits.log_softmax(-1).gather(1, wanted[:, None]).clamp(min=LEAST_LOG).sum()
        torch.testing.assert_close(measured.log_likelihoods[place], expected, rtol=1e-4, atol=1e-4)
        assert measured.lengths[place] == (logits.argmax(-1) == wanted).long().cumprod(0).sum()


def test_repairs_are_what_loading_with_their_overrides_gives(tmp_path):
    target = tiny_target()
    draft = block_draft(target, is_causal=True)
    draft.save_pretrained(tmp_path)
    evidence, found = evidence_of(target), {}
    before = evidence.measure(draft).log_likelihoods
    for repair in repairs_for(draft, target.config):
        found.setdefault(repair.kind, []).append(repair.what)
        overrides = {name: eval(value) for name, value in repair.overrides.items()}
        loaded = BlockDraftModel.from_pretrained(tmp_path, **overrides).eval()
        after = evidence.measure(repair.draft).log_likelihoods
        torch.testing.assert_close(after, evidence.measure(loaded).log_likelihoods)
        assert not torch.equal(after, before), repair.what
    assert found["causal flag"] == ["`is_causal` False instead of True"]
    assert {"taps", "causal flag"} <= found.keys()
    assert draft.config.is_causal is True


def test_a_draft_of_random_weights_exits_with_1(tmp_path, capsys):
    target = embedded.load_pair()[0]
    block_draft(target, num_hidden_layers=1, intermediate_size=64, mask_token_id=0).save_pretrained(tmp_path)
    arguments = ["--draft", str(tmp_path), "--target", str(embedded.TARGET), "--prompt", "Hello", "--json"]
    assert main(["doctor", *arguments, "--max-new-tokens", "16", "--depth", "7"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "BlockDraftModel"
    assert report["verdict"].startswith("Not sound")
    assert len(report["acceptance"]["acceptance_rates"]) == BLOCK - 1
    assert report["auto"]["mode"] == "tree"
