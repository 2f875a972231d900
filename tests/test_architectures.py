"""Every decoder-only architecture of the host: each node as decoded token by token, and text identical to plain
generate, or a refusal that says why.

Some architectures are tested always, all of them nightly. `python tests/test_architectures.py --table FILE` writes
what was found as Markdown.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from architectures import NEWER, NOT_DECODER_ONLY, NOT_TINY, architecture_names, tiny_model
from models import VOCAB, left_padded, tiny_draft
from node_criterion import worst_node_error
from packaging.version import Version
from transformers import __version__ as version

import hf_eagle3
from hf_eagle3.cli.inspect import empty_cache
from hf_eagle3.generation.batch import Batch
from hf_eagle3.generation.verify import chain_pass
from hf_eagle3.generation.verify import masks as verify_masks
from hf_eagle3.generation.verify import tree_pass as target_pass
from hf_eagle3.target.layer_inputs import Reach
from hf_eagle3.target.mode import UNPADDED_ONLY, decoding_mode


TOLERANCE = 1e-4
PROMPTS = ([20], [21, 9, 15])  # longer than windows and chunks (8); ragged, padded on the left
ALWAYS_TESTED = (
    "bert",
    "bloom",
    "cohere2",
    "deepseek_v3",
    "deepseek_v32",
    "falcon[alibi]",
    "gemma2[softcap]",
    "gemma3n_text",
    "gemma4_text[moe, shared keys]",
    "gpt_neo",
    "gpt_oss",
    "llama4_text",
    "llama[yarn]",
    "mamba",
    "minimax",
    "mpt",
    "nemotron_h",
    "opt",
    "phi3[longrope, beyond]",
    "qwen3_5_text",
)
REFUSED = {
    "cpmant": "attends to later ones",
    "dory[last_loop]": "earlier loops read",
    "openai-gpt": "reads no cache",
    "recurrent_gemma": "over several tokens resets",
    "reformer": "no transformers `Cache`",
    "rembert[narrow embedding]": "rows are 16 wide",
    "rwkv": "no transformers `Cache`",
    "xlnet": "no transformers `Cache`",
    "xlstm": "no transformers `Cache`",
}
if not NEWER:
    REFUSED |= {"glm_moe_dsa": "outside the cache", "olmo_hybrid": "no transformers `Cache`"}
# The floor's generate gives these a cache that is not theirs as soon as there is a draft.
PLAIN_CACHE = () if NEWER else ("deepseek_v4",)
# Before 5.18 a prompt without padding runs without a mask, so that rows of a batch are not what they are alone.
UNPADDED = (*UNPADDED_ONLY, "doge") if Version(version) < Version("5.18") else UNPADDED_ONLY


def architecture(name: str):
    return name if name in ALWAYS_TESTED else pytest.param(name, marks=pytest.mark.nightly)


def model_or_skip(name: str):
    """A newer transformers may have entries that the recipe does not fit; they are named, not passed over."""
    try:
        return tiny_model(name)
    except Exception as error:
        pytest.xfail(f"{name} cannot be built tiny: {type(error).__name__}: {error}")


def prompts(name: str) -> tuple[list[int], ...]:
    return ([20], [15, 15, 15]) if name in UNPADDED else PROMPTS


@dataclass
class Texts:
    """What a draft did over all prompts, greedily and sampling."""

    mode: str
    reason: str
    same: bool
    num_accepted: int


def seeded(target, options: dict, draft=None) -> torch.Tensor:
    torch.manual_seed(3)
    return target.generate(**options, assistant_model=draft)


def compare_texts(target, lengths: tuple[list[int], ...]) -> Texts:
    """Plain generate against generate with a random draft over the tokens that plain generate wrote most."""
    calls = [
        left_padded(case) | {"max_new_tokens": 20, "do_sample": do_sample}
        for case in lengths
        for do_sample in (False, True)
    ]
    plain = [seeded(target, options) for options in calls]
    new = torch.cat([text[:, -20:].flatten() for text in plain])
    draft = tiny_draft(target, tokens=new.bincount(minlength=VOCAB).topk(6).indices.sort().values)
    with hf_eagle3.record() as stats:
        same = [torch.equal(text, seeded(target, options, draft)) for text, options in zip(plain, calls, strict=True)]
    return Texts(stats.mode, stats.reason, all(same), sum(map(sum, stats.accepted_tokens)))


def inspected(target) -> str:
    """The mode that `hf-eagle3 inspect` reports, from a model without weights."""
    return decoding_mode(target.to("meta"), empty_cache(target)).kind


@pytest.mark.parametrize("name", [architecture(name) for name in architecture_names()])
def test_every_node(name):
    target = model_or_skip(name)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            worst_node_error(target, left_padded([20]))
        assert inspected(target) == ("tree" if "embedding" in name else "refused")  # a draft may have its own
        return
    for lengths in prompts(name):
        assert worst_node_error(target, left_padded(lengths)) < TOLERANCE


@pytest.mark.parametrize("name", [architecture(name) for name in architecture_names() if name not in REFUSED])
def test_text_is_identical(name):
    if name in PLAIN_CACHE:
        with pytest.raises(ValueError, match="a plain cache when a draft"):
            compare_texts(model_or_skip(name), prompts(name))
        return
    found = compare_texts(model_or_skip(name), prompts(name))
    assert found.same
    assert found.num_accepted > 0, "nothing was accepted: the test shows little"


# -- what the criterion sees ------------------------------------------------------------------------------------------


def elders_for_ancestors(patch, used):
    honest = verify_masks.verification_masks

    def masks(kinds, lengths, visible, depths, ancestors, dtype):
        used.append(True)
        return honest(kinds, lengths, visible, depths, torch.ones_like(ancestors).tril(), dtype)

    patch.setattr(target_pass, "verification_masks", masks)


def positions_shifted_by_one(patch, used):
    honest = target_pass.TreePass.verify

    def verify(self, tree):
        used.append(True)
        with patch.context() as inner:
            inner.setattr(
                Batch, "steps", property(lambda self: [self.lengths[n] - self.prompt_length + 1 for n in self.active])
            )
            return honest(self, tree)

    patch.setattr(target_pass.TreePass, "verify", verify)


def windows_one_token_wider(patch, used):
    honest = verify_masks.verification_masks

    def wider(reach: Reach) -> Reach:
        return Reach(*(size and size + 1 for size in (reach.window, reach.chunk)))

    def masks(kinds, *rest):
        changed = {kind: (span, wider(reach)) for kind, (span, reach) in kinds.items()}
        used.extend([True] if changed != kinds else [])
        return honest(changed, *rest)

    patch.setattr(target_pass, "verification_masks", masks)


def rejected_tokens_kept(patch, used):
    patch.setattr(chain_pass.ChainPass, "keep", lambda self, nodes, counts, ended: used.append(True))


MISTAKES = (elders_for_ancestors, positions_shifted_by_one, windows_one_token_wider, rejected_tokens_kept)
UNSEEN = {"llama4_text[one chunk]": [windows_one_token_wider]}  # its chunk is longer than all prompts here


@pytest.mark.parametrize("name", [architecture(name) for name in architecture_names() if name not in REFUSED])
def test_mistakes_are_seen(name, monkeypatch):
    """The tests above fail for a wrong mask, position or window, or states that stay, in every architecture."""
    target, num_used = model_or_skip(name), 0
    for mistake in MISTAKES:
        used = []
        with monkeypatch.context() as patch:
            mistake(patch, used)
            error = worst_node_error(target, left_padded([21]), num_nodes=12, cycles=2)
        num_used += bool(used)
        if used and mistake not in UNSEEN.get(name, ()):
            assert error > 10 * TOLERANCE, mistake.__name__
    assert num_used > 0


@pytest.mark.parametrize(
    ("name", "lengths", "changes"),
    [(name, [21, 9, 15], {}) for name in UNPADDED_ONLY if name not in PLAIN_CACHE]
    + [("doge", [20], {"keep_window_size": 24}), ("llama[dynamic]", [20], {"max_position_embeddings": 24})],
)
def test_unsteady_calls_run_plainly(name, lengths, changes):
    if name not in architecture_names():
        pytest.skip(f"this transformers has no {name}")
    found = compare_texts(tiny_model(name, **changes), (lengths,))
    assert found.mode == "plain"
    # Older hosts keep frequencies that grew once, so that plain generate does not repeat itself.
    assert found.same or (name == "llama[dynamic]" and not NEWER)


def table_row(name: str) -> tuple[str, str]:
    """(mode, a line of the table)."""
    try:
        target = tiny_model(name)
        seeded(target, left_padded([3]) | {"max_new_tokens": 2})
    except Exception as error:
        return _row(name, "left out", f"plain generate fails: {type(error).__name__}: {str(error).splitlines()[0]}")
    try:
        worst = max(worst_node_error(target, left_padded(lengths)) for lengths in prompts(name))
        texts = compare_texts(target, prompts(name))
    except ValueError as error:
        return _row(name, "refused", str(error).split(f"speed up {type(target).__name__}: ")[-1].rstrip("."))
    except Exception as error:
        return _row(name, "fails", f"{type(error).__name__}: {str(error).splitlines()[0]}")
    text = "identical" if texts.same else "differs"
    return _row(name, texts.mode, texts.reason, f"{worst:.0e}", f"{text}, {texts.num_accepted}")


def _row(name: str, mode: str, *rest: str) -> tuple[str, str]:
    return mode, f"| {' | '.join((name, mode, *rest, '', '')[:5])} |"


def counted(rows: list[tuple[str, str]], is_variant: bool) -> str:
    counts = Counter(mode for mode, line in rows if ("[" in line.split("|")[1]) == is_variant)
    return f"{counts.total()}: " + ", ".join(f"{count} {mode}" for mode, count in counts.most_common())


def write_table(path: Path) -> None:
    rows = [table_row(name) for name in architecture_names()]
    rows += [_row(name, "left out", why) for name, why in (NOT_DECODER_ONLY | NOT_TINY).items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""# Architectures

What `generate(assistant_model=draft)` does with every entry of the causal-LM mapping of transformers {version}
({counted(rows, False)}),
and with some of their options, given in square brackets ({counted(rows, True)}).
Written by `python tests/test_architectures.py --table docs/architectures.md` from tiny random models in float32; the
same runs are tests.

- *tree*, *chain*: what the target verifies in one pass. *refused*: an error with the reason. *left out*: not tested.
- *node error*: the largest difference between the logits of a drafted node and those of plain `generate` forced along
  the path to it, relative to the largest logit; over several cycles of random trees or chains, for one sequence and
  for three of different lengths, longer than windows and chunks.
- *text*: comparison with plain `generate`, greedy and sampled with the same seed, and the number of accepted tokens.

| architecture | mode | reason | node error | text |
| --- | --- | --- | --- | --- |
"""
        + "\n".join(sorted(line for _, line in rows))
        + "\n"
    )


def test_the_table_has_every_architecture():
    text = (Path(__file__).parents[1] / "docs" / "architectures.md").read_text()
    if f"transformers {version}" not in text:
        pytest.skip("written with another transformers")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert {row[0].removeprefix("| ") for row in rows} == {*architecture_names(), *NOT_DECODER_ONLY, *NOT_TINY}
    assert {row[0].removeprefix("| ") for row in rows if row[1] == "refused"} == {*REFUSED}
    assert not [row for row in rows if row[1] == "fails" or "differs" in row[-1]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What generate does with a draft, by architecture.")
    parser.add_argument("--table", type=Path, required=True, help="Markdown file to write")
    write_table(parser.parse_args().table)
