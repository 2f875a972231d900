"""Whether vLLM serves a draft as we do: the same greedy text, and as many drafts accepted at each position.

Both run in float32 over a chain, one prompt after the other. Does not know how drafts are exported.
"""

import json
import re
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from transformers import PreTrainedModel

from ..generation.stats import record
from ..modeling_eagle3 import Eagle3DraftModel
from .vllm_server import served_model, serving


DEPTH = 5  # tokens drafted per cycle
NEW_TOKENS = 64  # per prompt: 20 prompts give several hundred cycles, on a CPU in minutes
TOLERANCE = 0.01  # of the acceptance rate at a position
TIMEOUT = 1800  # seconds for one answer, on a shared CPU
DRAFTS = re.compile(r"^vllm:spec_decode_num_drafts_total{.*} (\S+)$", re.MULTILINE)
ACCEPTED = re.compile(
    r'^vllm:spec_decode_num_accepted_tokens_per_pos_total{.*position="(\d+)".*} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True)
class Served:
    """
    What an engine did with the prompts.

    Attributes:
        tokens: New tokens of each prompt.
        cycles: Passes of the target that verified a chain.
        rates: Share of the cycles in which the draft of each position was accepted, (DEPTH,).
    """

    tokens: list[list[int]]
    cycles: int
    rates: list[float]


def verify_vllm(
    target: PreTrainedModel,
    draft: Eagle3DraftModel,
    target_source: str,
    exported: Path,
    prompts: Sequence[list[int]],
    *,
    python: str,
    max_new_tokens: int = NEW_TOKENS,
) -> str:
    """
    Compare a draft in this process with its export in vLLM.

    Args:
        target, draft: In float32, on the CPU or an accelerator.
        target_source: Directory or Hub id, where vLLM reads the target.
        exported: The draft as `hub.export` wrote it.
        prompts: Token ids.
        python: An interpreter that has vLLM.

    Returns:
        What was found, in one line.

    Raises:
        ValueError: texts or acceptance differ; the message has the figures.
        OSError: no server starts; the message names its log.
    """
    ours = run_here(target, draft, prompts, max_new_tokens)
    theirs = run_vllm(target_source, exported, prompts, max_new_tokens, python)
    return compare(ours, theirs)


def compare(ours: Served, theirs: Served) -> str:
    """The verdict; ValueError where they differ."""
    here, there = (" ".join(f"{rate:.3f}" for rate in served.rates) for served in (ours, theirs))
    figures = f"accepted per position here {here} in {ours.cycles} cycles, in vLLM {there} in {theirs.cycles}"
    differing = [i for i, (a, b) in enumerate(zip(ours.tokens, theirs.tokens, strict=True)) if a != b]
    if differing:
        raise ValueError(f"vLLM's text differs at prompts {differing} of {len(ours.tokens)}; {figures}.")
    if any(abs(a - b) > TOLERANCE for a, b in zip(ours.rates, theirs.rates, strict=True)):
        raise ValueError(f"vLLM accepts other drafts: {figures}; allowed is a difference of {TOLERANCE:.3f}.")
    return f"vLLM: the same text for {len(ours.tokens)} prompts; {figures}."


def run_here(
    target: PreTrainedModel, draft: Eagle3DraftModel, prompts: Sequence[list[int]], max_new_tokens: int
) -> Served:
    """Greedily, over a chain, beyond stop tokens; a last cycle is whole, as vLLM counts it."""
    chain, tokens, accepted = draft.with_tree("chain", tree_depth=DEPTH), [], []
    options = {"do_sample": False, "max_new_tokens": max_new_tokens + DEPTH + 1, "assistant_model": chain}
    options |= {"eos_token_id": draft.config.vocab_size, "pad_token_id": 0}  # no token has this id: nothing ends it
    for prompt in prompts:
        with record() as stats:
            out = target.generate(torch.tensor([prompt], device=target.device), **options)
        tokens.append(out[0, len(prompt) :].tolist()[:max_new_tokens])
        accepted += _cycles_within(max_new_tokens, stats.accepted_tokens[0])
    rates = [sum(count > position for count in accepted) / max(len(accepted), 1) for position in range(DEPTH)]
    return Served(tokens, len(accepted), rates)


def _cycles_within(length: int, accepted: Sequence[int]) -> list[int]:
    """What the cycles accepted that started before `length` tokens were there; the prompt's pass gives the first."""
    counted, written = [], 1
    for count in accepted:
        if written >= length:
            break
        counted.append(count)
        written += count + 1
    return counted


def run_vllm(target: str, draft: Path, prompts: Sequence[list[int]], max_new_tokens: int, python: str) -> Served:
    """The same through a server and its counters."""
    speculative = {"method": "eagle3", "model": str(draft.absolute()), "num_speculative_tokens": DEPTH}
    context = str(max(map(len, prompts)) + max_new_tokens + DEPTH + 1)
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", context, "--max-num-seqs", "1"]
    options += ["--max-num-batched-tokens", context, "--speculative-config", json.dumps(speculative)]
    log = Path(tempfile.gettempdir()) / "hf-eagle3-vllm.log"
    with serving(python, target, free_port(), log, *options) as url:
        name, tokens = served_model(url), []
        for prompt in prompts:
            body = {"model": name, "prompt": prompt, "max_tokens": max_new_tokens, "temperature": 0}
            body |= {"ignore_eos": True, "return_token_ids": True}  # a cycle that a stop token cuts counts otherwise
            answer = httpx.post(f"{url}/completions", json=body, timeout=TIMEOUT)
            answer.raise_for_status()
            tokens.append(answer.json()["choices"][0]["token_ids"])
        counters = httpx.get(f"{url.removesuffix('/v1')}/metrics", timeout=60).text
    cycles = int(float(DRAFTS.search(counters)[1]))
    accepted = {int(position): float(count) for position, count in ACCEPTED.findall(counters)}
    return Served(tokens, cycles, [accepted[position] / max(cycles, 1) for position in range(DEPTH)])


def free_port() -> int:
    """The number of an unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
