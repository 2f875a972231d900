"""Checks the contract with transformers: every point of contact, then drafting end to end on tiny models.

`python -m hf_eagle3.compat` prints a table of both and exits with 1 if anything fails. `guard.py` runs the end-to-end
checks on a version newer than the last proved one. The reference is always plain `generate`.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils import logging

from .. import vocabulary
from ..configuration_eagle3 import Eagle3Config
from ..generation.stats import record
from ..modeling_eagle3 import Eagle3DraftModel

# Imported for their points, so that the table is complete.
from . import caches, calls, hooks, models, outputs, processors, training  # noqa: F401
from .points import GENERATE, POINTS
from .versions import is_proved, transformers_version


VOCAB, COMMON, NEW_TOKENS = 20, 6, 8
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
CHANGES = {
    "gemma3_text": {
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": 8,
    },
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}
TREE = {"tree_mode": "static", "num_draft_tokens": 20, "tree_depth": 3, "tree_top_k": 4}
CHAIN = {"tree_mode": "chain", "tree_depth": 2}
GREEDY_OPTIONS = {"do_sample": False}
# A high temperature lets the noise decide, which the draft shares: its chains are accepted.
SAMPLING_OPTIONS = {"do_sample": True, "temperature": 8.0, "top_k": 12, "top_p": 0.95}
ALL_OUTPUTS = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
TOLERANCE = 1e-3  # relative, float32


class Broken(Exception):
    """A check failed; the message says how."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    point: str
    expected: str
    found: str
    holds: bool
    scope: str


@cache
def pair(model_type: str) -> tuple[PreTrainedModel, Eagle3DraftModel]:
    """
    A tiny random target that prefers a few tokens, and a draft that predicts only these, so that many are accepted.
    Weights are large: with the default ones, logits depend on the current token alone and a wrong mask goes unnoticed.
    """
    generator = torch.Generator().manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES, **CHANGES.get(model_type, {}))
    target = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    draft = Eagle3DraftModel(Eagle3Config.from_target(target, draft_vocab_size=COMMON)).float().eval()
    with torch.no_grad():
        for parameter in (*target.parameters(), *draft.parameters()):
            if parameter.dim() > 1:
                parameter.normal_(std=0.4, generator=generator)
        target.get_output_embeddings().weight[:-COMMON].mul_(0.3)
    offsets, mask = vocabulary.mapping_from_target_ids(torch.arange(VOCAB - COMMON, VOCAB), VOCAB)
    draft.d2t.copy_(offsets)
    draft.t2d.copy_(mask)
    return target, draft


def padded_prompts(*lengths: int) -> dict[str, torch.Tensor]:
    """Random prompts with left padding."""
    width = max(lengths)
    ids = torch.randint(3, VOCAB, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def same(target: PreTrainedModel, draft: Eagle3DraftModel, inputs: dict, mode: str = "tree", **options) -> None:
    """
    Compare a call with a draft to plain `generate`: all outputs, and the random state after the call.

    Raises:
        Broken: something differs, or the draft was not used.
    """
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0} | options

    def run(**assistant):
        torch.default_generator.manual_seed(0)
        return target.generate(**inputs, **options, **assistant), torch.get_rng_state()

    plain, state = run()
    with record() as stats:
        ours, own_state = run(assistant_model=draft)
    if mode and (stats.mode != mode or not stats.num_draft_tokens):
        raise Broken(f"nothing was drafted ({stats.reason or stats.mode or 'no stats'})")
    if not torch.equal(state, own_state) and mode:
        raise Broken("the random state after the call differs")
    if isinstance(plain, torch.Tensor):
        _same_tensors("text", [plain], [ours])
        return
    _same_tensors("text", [plain["sequences"]], [ours["sequences"]])
    for name in ("scores", "hidden_states"):
        if plain.get(name) is not None:
            _same_tensors(name, _flat(plain[name][1:]), _flat(ours[name][1:]))
    _same_tensors("cache", _columns(plain[calls.CACHE]), _columns(ours[calls.CACHE]))


def _flat(steps) -> list[torch.Tensor]:
    return [tensor for step in steps for tensor in (step if isinstance(step, tuple) else (step,))]


def _columns(memory) -> list[torch.Tensor]:
    return [part for layer in memory.layers for part in (layer.keys, layer.values)]


def _same_tensors(what: str, plain: list[torch.Tensor], ours: list[torch.Tensor]) -> None:
    if [part.shape for part in plain] != [part.shape for part in ours]:
        raise Broken(f"{what}: shapes differ from plain `generate`'s")
    for mine, theirs in zip(ours, plain, strict=True):
        near = (mine - theirs).abs() <= TOLERANCE * theirs.abs().clamp(min=1)
        if not (near | (mine == theirs)).all():
            raise Broken(f"{what}: differs from plain `generate`'s")


class _CustomCriterion(StoppingCriteria):
    """A user-defined criterion that ends a sequence at certain tokens."""

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] % 7 == 3


def _tree():
    target, draft = pair("llama")
    same(target, draft.with_tree(**TREE), padded_prompts(9, 4, 7), **GREEDY_OPTIONS, **ALL_OUTPUTS)


def _sampling():
    target, draft = pair("llama")
    same(target, draft.with_tree(**TREE), padded_prompts(9, 4), **SAMPLING_OPTIONS)


def _auto():
    target, draft = pair("llama")
    same(target, draft.with_tree("auto"), padded_prompts(9), mode="", **GREEDY_OPTIONS)


def _chain():
    target, draft = pair("llama")
    same(target, draft.with_tree(**CHAIN), padded_prompts(9), mode="chain", **SAMPLING_OPTIONS)


def _options():
    target, draft = pair("llama")
    draft = draft.with_tree(**TREE)
    same(
        target,
        draft,
        padded_prompts(9, 5),
        eos_token_id=[5, 7],
        repetition_penalty=1.3,
        no_repeat_ngram_size=3,
        **GREEDY_OPTIONS,
    )
    criteria = StoppingCriteriaList([_CustomCriterion()])
    same(target, draft, padded_prompts(9, 5), eos_token_id=[5], stopping_criteria=criteria, mode="", **GREEDY_OPTIONS)


def _windows():
    target, draft = pair("gemma3_text")
    same(target, draft.with_tree(**TREE), padded_prompts(9, 4), **GREEDY_OPTIONS)


def _turns():
    target, draft = pair("llama")
    draft, texts = draft.with_tree(**TREE), []
    for assistant in ({}, {"assistant_model": draft}):
        memory, ids = DynamicCache(config=target.config), padded_prompts(7)["input_ids"]
        for _ in range(2):
            options = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, calls.CACHE: memory}
            ids = target.generate(ids, **options, **GREEDY_OPTIONS, **assistant)
        texts.append(ids)
    _same_tensors("second turn", texts[:1], texts[1:])


def _static():
    target, draft = pair("llama")
    same(target, draft.with_tree(**TREE), padded_prompts(9, 4), cache_implementation="static", **GREEDY_OPTIONS)


def _hybrid():
    target, draft = pair("qwen3_next")
    same(target, draft.with_tree(**CHAIN), padded_prompts(9), mode="chain", **SAMPLING_OPTIONS)


def _host_chain():
    target, draft = pair("llama")
    same(target, draft.with_tree("host_chain", tree_depth=3), padded_prompts(9), mode="", **GREEDY_OPTIONS)


CHECKS: dict[str, Callable[[], None]] = {
    "tree, several sequences, all outputs": _tree,
    "sampling": _sampling,
    "chain": _chain,
    "tree mode auto": _auto,
    "processors and stopping": _options,
    "sliding windows": _windows,
    "second turn over a cache": _turns,
    "static shapes": _static,
    "recurrent layers": _hybrid,
    "tree mode host_chain": _host_chain,
}


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Restore the user's random state, default device and dtype, and log level after the block."""
    dtype, verbosity = torch.get_default_dtype(), logging.get_verbosity()
    logging.set_verbosity_error()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            logging.set_verbosity(verbosity)


def fault_of(check: Callable[[], None]) -> str | None:
    """The failure of a check, or `None`."""
    try:
        with _undisturbed():
            check()
    except Broken as broken:
        return str(broken)
    except Exception as error:  # a changed transformers may raise anything
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def first_failure() -> str | None:
    """The first end-to-end check that fails, with its failure; `None` if all pass."""
    for name, check in CHECKS.items():
        fault = fault_of(check)
        if fault is not None:
            return f"the check {name!r} failed ({fault})"
    return None


def contract_table() -> list[Row]:
    """One row per point and per check."""
    out = []
    for point in POINTS:
        fault = point.fault()
        expected = point.used_for + (f"; takes {', '.join(point.parameters)}" if point.parameters else "")
        out.append(Row(point.path, expected, fault or "as expected", fault is None, point.scope))
    for name, check in CHECKS.items():
        fault = fault_of(check)
        out.append(Row(name, "equal to plain `generate`", fault or "equal", fault is None, GENERATE))
    return out


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0 if everything holds."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_eagle3.compat",
        description="check every point of contact with transformers, and drafting end to end on tiny models",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    parser.add_argument("--failing", action="store_true", help="print failures only")
    given = parser.parse_args(arguments)
    rows = contract_table()
    failing = [row for row in rows if not row.holds]
    state = "proved" if is_proved() else "newer than the last proved version"
    if given.json:
        print(
            json.dumps({"transformers": transformers_version, "state": state, "rows": [asdict(row) for row in rows]})
        )
    else:
        for row in failing if given.failing else rows:
            print(f"{'ok  ' if row.holds else 'FAIL'}  {row.point:58s}  {row.found}  [{row.expected}]")
        print(f"transformers {transformers_version} ({state}): {len(rows) - len(failing)} of {len(rows)} points hold")
    return 1 if failing else 0
